"""Observers, one a file: each finds the range of a tensor that is worth resolving."""
