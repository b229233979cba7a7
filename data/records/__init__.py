"""RecordIO files: their layout, reading, writing, checking."""
