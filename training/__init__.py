"""A training run in progress."""
