"""The posterior predictive of a model, in Python and as a SavedModel."""
