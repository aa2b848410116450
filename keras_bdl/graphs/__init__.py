"""The graph of a model: its end, its parts, and copies of it."""
