"""Bayesian copies of plain models, plain ones of Bayesian, and continued ones."""
