"""Measurements, each a command that prints a table; nothing here decides a test."""
