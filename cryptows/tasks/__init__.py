"""One module for each task of the nursery."""
