"""Latency and memory of a network on a device that is not at hand."""
