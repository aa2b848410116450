"""How deep networks with early exits run, and what that saves."""
