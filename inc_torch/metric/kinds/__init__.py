"""The metrics that configs can name, one file for each kind."""
