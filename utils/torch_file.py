"""Files of ``torch.save`` that others may have written."""

from __future__ import annotations

import zipfile
from pathlib import Path


def check_unfolding(path: Path) -> None:
    """Refuse a file whose parts announce more bytes than it has; torch itself compresses nothing.

    A file that is no zip archive passes: the older form of ``torch.save`` cannot unfold.

    Raises:
        ValueError: it would unfold to more than its size.
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            announced = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return
    size = path.stat().st_size
    if announced > size:
        raise ValueError(
            f"{path} unfolds to {announced:,} bytes from {size:,}, but torch.save compresses nothing: it was made to "
            "take memory, or packed again; write it anew with torch.save"
        )
