"""How a command ends before it is done: by Ctrl-C, by a scheduler's signal, and with its job requeued."""
