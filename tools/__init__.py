"""Command-line helpers: make, pack and check data."""
