"""Trained detectors on whole videos, on windows and on streams."""
