"""How a command ends early: by Ctrl-C, a scheduler's signal with its job requeued, or a metric that stands still."""
