"""The machine that a run is on: its allocator, its cores, and how many threads are quickest on them."""
