"""Commands that prepare data: features from videos, records from annotations and features, weights from other code."""
