"""Each module is a command that prints a ratio against a peer or a baseline, measured in the same run."""
