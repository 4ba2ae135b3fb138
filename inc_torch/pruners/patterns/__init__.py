"""Pruning patterns, one a file."""
