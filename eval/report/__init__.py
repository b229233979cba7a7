"""The report of an evaluation: figures and one HTML page."""
