"""What runs a network: each module wraps one runtime and knows no other."""
