"""Tensor mathematics only: no models, no files, no configuration. Everything here can be checked by hand."""
