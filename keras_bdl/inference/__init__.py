"""Posteriors that are fitted to a trained network."""
