"""A checkpoint's model for use without training."""
