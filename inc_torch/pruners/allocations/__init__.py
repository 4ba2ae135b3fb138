"""Where pruned units are taken from, one way a file."""
