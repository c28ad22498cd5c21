"""Where text comes from: files, Python's standard library, the Hugging Face Hub."""
