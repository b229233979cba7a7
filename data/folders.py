"""Image folders: ``root/<identity>/<image>``."""

from __future__ import annotations

import os
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def identity_folders(root: Path) -> list[str]:
    """The names of the folders below ``root``, sorted, hidden ones left out; OSError if it cannot be read."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def image_names(folder: Path) -> list[bytes]:
    """The names of image files in ``folder``, sorted, as the system has them; recognised by ending."""
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries if not entry.name.startswith("."))
        return sorted(os.fsencode(name) for name in names if name.lower().endswith(IMAGE_SUFFIXES))
