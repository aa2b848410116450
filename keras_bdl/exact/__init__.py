"""Models that have an exact posterior."""
