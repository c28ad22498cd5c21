"""What the recipes' data share: text of any source, tokenized once and kept, and batches of like lengths."""
