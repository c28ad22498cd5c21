"""The cloze recipe: blanks filled in from both sides."""
