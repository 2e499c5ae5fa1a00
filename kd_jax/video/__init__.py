"""Video and skeleton files to snippets and features."""
