"""Takes networks to a device: the bundle, and the program that does the work there."""
