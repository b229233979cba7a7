"""Which class centres live here, how they are chosen, stored, moved, changed and kept."""
