"""Where pairs of lines come from: files, the Hugging Face Hub, numbers spelled out."""
