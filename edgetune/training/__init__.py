"""Training: the one loop, its strategies, cached features, and the state that survives a kill."""
