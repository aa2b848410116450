"""Measures how deep networks with early exits run, and what early exits save."""
