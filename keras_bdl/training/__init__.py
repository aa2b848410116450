"""The data of `fit`: reading them, and the number of examples."""
