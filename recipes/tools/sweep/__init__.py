"""Sweeps over a recipe's options."""
