"""Temporal filters and the detector that puts a classifier on one of them."""
