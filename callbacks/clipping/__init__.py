"""Clipping: a threshold that nobody sets, and what goes with it."""
