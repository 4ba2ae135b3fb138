"""Every technique on every architecture, in every loop, saved, loaded and resumed: each cell passes or is refused."""
