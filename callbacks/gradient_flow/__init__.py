"""How far back in time gradients reach."""
