"""The command line: what can be said, and how it is read."""
