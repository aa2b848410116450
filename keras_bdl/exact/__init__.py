"""Models whose posterior is exact."""
