"""Shared pieces that depend on nothing else of the project: configuration, records, ranks, logs."""
