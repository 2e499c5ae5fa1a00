"""Metrics on whole videos, in NumPy without JAX."""
