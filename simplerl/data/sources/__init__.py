"""Training sets: one file each, with a `Config` and `load(config)`."""
