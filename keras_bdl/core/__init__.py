"""The base of every part of the library: noise, scopes and layers that sample."""
