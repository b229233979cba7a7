"""A trained network at work: load it, align faces, embed batches."""
