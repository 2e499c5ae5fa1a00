"""Losses with parameters or a memory: flax modules, called with the outputs of the student and all teachers."""
