"""Training: terms, step, runs, experiments."""
