"""Copies models: plain to Bayesian, Bayesian to plain, and posterior to prior."""
