"""Shared pieces that depend on nothing else in the project: configuration, ranks, device, files, logs."""
