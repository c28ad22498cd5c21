"""The language-model recipe."""
