"""What every part of the library stands on: noise, scopes, layers that sample."""
