"""Callbacks for any Lightning project: gradient norms, and a clipping threshold that nobody has to set."""
