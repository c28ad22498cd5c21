"""The translation recipe."""
