"""Image folders: ``root/<identity>/<image>``."""

from __future__ import annotations

import os
from pathlib import Path

from utils.paths import FolderBounds

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class OutsideLinks:
    """Counts links below an image folder that lead out of it. They are followed: people lay sets together so.

    Args:
        root: the folder.
        most: links after which counting ends, because it takes longer than listing them; None: all are counted.
    """

    def __init__(self, root: Path, most: int | None = None) -> None:
        self.root, self.most, self.count, self.first = root, most, 0, ""
        self._bounds = FolderBounds(root)

    def see(self, entry: os.DirEntry[str]) -> None:
        """Count an entry that is such a link."""
        if entry.is_symlink() and self.count != self.most and not self._bounds.holds(entry.path):
            self.count += 1
            self.first = self.first or entry.path

    def note(self) -> str:
        """Say how many there are, "" without any."""
        if not self.count:
            return ""
        count = f"{self.count:,}{' or more' if self.count == self.most else ''}"
        return f"{self.root}: links that lead out of the folder are followed: {count}, the first {self.first}"


def identity_folders(root: Path, links: OutsideLinks | None = None) -> list[str]:
    """The names of the folders below ``root``, sorted, hidden ones left out; OSError if it cannot be read.

    Args:
        root: the folder of identities.
        links: sees what is named.
    """
    with os.scandir(root) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    if links is not None:
        for entry in found:
            links.see(entry)
    return sorted(entry.name for entry in found)


def image_names(folder: Path, links: OutsideLinks | None = None) -> list[bytes]:
    """The names of image files in ``folder``, sorted, as the system has them; recognised by ending.

    Pipes and devices are left out, whatever their name: reading one may never end.

    Args:
        folder: of one identity.
        links: sees what is named.
    """
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.lower().endswith(IMAGE_SUFFIXES):
                continue
            if not (entry.is_file() or entry.is_dir() or _is_broken(entry)):
                continue
            if links is not None:
                links.see(entry)
            names.append(os.fsencode(entry.name))
    return sorted(names)


def _is_broken(entry: os.DirEntry[str]) -> bool:
    """Whether a link leads nowhere: whoever reads it says so."""
    return entry.is_symlink() and not Path(entry.path).exists()
