"""Many cells over many lengths, trained into one table and one picture."""
