"""Reading the data of `fit`, and the number of examples."""
