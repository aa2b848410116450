"""Code that uses a backend or TensorFlow Probability. It is imported lazily."""
