"""Sparsity schedules, one a file."""
