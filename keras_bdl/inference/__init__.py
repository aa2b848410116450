"""Posteriors that are fitted around a trained network."""
