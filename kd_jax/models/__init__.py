"""Temporal filters and the detector that puts a classifier on one of them."""

from kd_jax.models.detector import FILTERS, Detector

__all__ = ["FILTERS", "Detector"]
