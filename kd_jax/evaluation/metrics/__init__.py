"""Metrics on whole videos, in NumPy: nothing here imports JAX."""
