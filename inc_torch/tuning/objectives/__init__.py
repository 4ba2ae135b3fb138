"""The built-in objectives, one file each; each registers itself."""
