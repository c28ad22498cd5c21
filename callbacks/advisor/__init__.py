"""Advice on a fixed threshold, from the norms of one training."""
