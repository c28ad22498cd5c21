"""Trained models as graphs that run without this library."""
