"""What must touch a backend or TensorFlow Probability. Imported lazily."""
