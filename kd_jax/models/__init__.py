"""Temporal filters, and the detector, which adds a classifier to one of them."""

from kd_jax.models.detector import FILTERS, Detector, Filter, TemporalFilter

__all__ = ["FILTERS", "Detector", "Filter", "TemporalFilter"]
