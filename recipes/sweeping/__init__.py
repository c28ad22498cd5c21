"""A grid or a random search over a recipe's options, run on this machine."""
