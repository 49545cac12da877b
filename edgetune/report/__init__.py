"""From measures to a verdict, and from a verdict to pages."""
