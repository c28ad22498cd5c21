"""Pairs of lines, tokenized once, kept, and read as batches of like lengths."""
