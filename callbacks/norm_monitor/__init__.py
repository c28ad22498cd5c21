"""Gradient norms in the log."""
