"""Tensor mathematics only: no models, no files, no configuration. Every function can be checked by hand."""
