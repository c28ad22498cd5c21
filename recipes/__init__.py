"""Recipes: language-model and translation trainings that run as they are."""
