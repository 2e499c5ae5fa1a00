"""Figures and numbers on finished experiments: what a model has learnt, and where a gain comes from."""
