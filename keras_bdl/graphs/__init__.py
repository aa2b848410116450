"""Reading the graph of a model, cutting it into parts and copying it."""
