"""Pruning regularizers, one a file."""
