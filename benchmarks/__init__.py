"""Measurements of speed and memory: each module is a command that prints a table. Tests do not judge the figures."""
