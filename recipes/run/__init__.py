"""The life of a run: its folder, checkpoints, tracking, metrics and plots."""
