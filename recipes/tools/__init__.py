"""Tools for every recipe."""
