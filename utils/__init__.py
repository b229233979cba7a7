"""Shared pieces that depend on nothing else in the project: configuration, records, ranks, logs."""
