"""The built-in strategies, one file each; each registers itself."""
