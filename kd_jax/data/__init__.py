"""Data: annotations, features, records and batches of videos."""
