"""Posteriors over the weights of plain networks."""
