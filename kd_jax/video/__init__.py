"""Video and skeleton files: snippets, features and pictures."""
