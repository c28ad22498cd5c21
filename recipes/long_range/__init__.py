"""The long-range recipe: tasks that only a memory over many steps solves, and cells put to the test on them."""
