"""Evaluation: scores become detections and named results; the official file formats."""
