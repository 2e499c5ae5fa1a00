"""Scores to detections, protocols, metrics and the official file formats."""
