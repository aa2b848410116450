"""Copies plain models as Bayesian, Bayesian models as plain, or for more data."""
