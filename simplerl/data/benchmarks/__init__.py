"""Benchmarks: one file each, with the published set as `SET`, or a `load()`."""
