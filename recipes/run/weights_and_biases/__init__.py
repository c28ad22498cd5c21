"""How a run is kept in Weights & Biases: online or in a file, and in which rows."""
