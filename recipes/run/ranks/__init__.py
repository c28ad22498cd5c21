"""A training in several processes, on one machine or many: who writes, and whether all train the same."""
