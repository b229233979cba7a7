"""WebDataset shards: tar files whose samples are read at random, by an index."""
