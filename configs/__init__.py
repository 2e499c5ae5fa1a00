"""One Python file per experiment; configs/default.py documents every field."""
