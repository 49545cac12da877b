"""How latency and memory are measured, and the statistics that say how much a measurement is worth."""
