"""Videos on disk and in memory: annotations, features, records, batches."""
