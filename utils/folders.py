"""Image folders: ``root/<identity>/<image>``, images deeper down included, and a word on what is not taken."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from utils.paths import FolderBounds

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".pnm", ".jp2",
)  # fmt: skip
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "gallery", "probe", "query"}

# What systems put beside files, thumbnails among it: Synology, macOS, Windows, ext4.
SYSTEM_FOLDERS = {"@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
_OF_SYSTEM = "folders of the system's own"


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


class FolderNotes(OutsideLinks):
    """What is unusual about an image folder: what was left out, what lies deeper, links out of it."""

    def __init__(self, root: Path, most: int | None = None) -> None:
        super().__init__(root, most)
        self.left_out: Counter[str] = Counter()  # files, by reason
        self._examples: dict[str, str] = {}
        self._endings: Counter[str] = Counter()
        self.deeper, self._first_deeper = 0, ""
        self.direct = 0  # images where they are expected

    def leave_out(self, entry: os.DirEntry[str], reason: str) -> None:
        """Count a file that is not taken."""
        self.left_out[reason] += 1
        self._examples.setdefault(reason, entry.path)

    def leave_out_ending(self, entry: os.DirEntry[str]) -> None:
        """Count a file without an image's ending."""
        self.leave_out(entry, "without an image's ending")
        self._endings[os.path.splitext(entry.name)[1].lower()[:12] or "no ending"] += 1  # noqa: PTH122

    def take(self, entry: os.DirEntry[str], depth: int) -> None:
        """Count an image; ``depth`` 0 is an identity's own folder."""
        if depth == 0:
            self.direct += 1
            return
        self.deeper += 1
        self._first_deeper = self._first_deeper or entry.path

    def lines(self) -> list[str]:
        """One line for each thing that is unusual."""
        lines = [self.note()] if self.count else []
        if self.deeper:
            lines.append(
                f"{self.root}: {self.deeper:,} of {self.deeper + self.direct:,} images lie deeper than "
                f"<identity>/<image> and are taken, the first {self._first_deeper}; the first folder is the person"
            )
        if self.left_out:
            lines.append(f"{self.root}: {self.left_out_text()}")
        return lines

    def left_out_text(self) -> str:
        """How many files are left out, by reason, with an example of each."""
        return f"left out: {'; '.join(self._reason(reason, count) for reason, count in self.left_out.most_common())}"

    def text(self) -> str:
        """All lines as one, "" where nothing is unusual."""
        return "; ".join(self.lines())

    def check_level(self, identities: list[str]) -> None:
        """Raise ValueError if ``identities`` are plainly not people but parts of a set, the people one level down."""
        if self.direct or not self.deeper:
            return
        if len(identities) == 1 or all(name.lower() in _SPLITS for name in identities):
            raise ValueError(
                f"{self.root}: its folders ({', '.join(identities)}) hold no image themselves but folders of images "
                f"({self._first_deeper}): give the folder whose folders are the people, such as "
                f"{self.root / identities[0]}"
            )

    def _reason(self, reason: str, count: int) -> str:
        endings = ""
        if reason == "without an image's ending":
            common = [f"{ending} {n:,}" for ending, n in self._endings.most_common(4)]
            endings = f" ({', '.join(common)}{', ...' if len(self._endings) > 4 else ''})"
        return f"{count:,} {reason}{endings}, such as {self._examples[reason]}"


def identity_folders(root: Path, notes: FolderNotes | None = None) -> list[str]:
    """The names of the folders below ``root``, sorted, without hidden ones and those that a system keeps for itself.

    Args:
        root: the folder of identities.
        notes: sees what is named, what is left out, and images that lie in ``root`` itself.

    Raises:
        OSError: ``root`` cannot be read.
        FileNotFoundError: a link leads nowhere: without that person, all later ones would get other labels.
    """
    found = []
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name in SYSTEM_FOLDERS:
                if notes is not None:
                    notes.leave_out(entry, _OF_SYSTEM)
            elif entry.is_dir():
                found.append(entry)
            elif _is_broken(entry) and not entry.name.lower().endswith(IMAGE_SUFFIXES):
                target = Path(entry.path).readlink()
                raise FileNotFoundError(
                    f"{entry.path}: a link to {target}, where there is nothing: mount the disk or copy the "
                    "folder, or remove the link (the labels of all later people then move)"
                )
            elif notes is not None and entry.name.lower().endswith(IMAGE_SUFFIXES):
                notes.leave_out(entry, "loose in the folder itself, of nobody")
    if notes is not None:
        for entry in found:
            notes.see(entry)
    return sorted(entry.name for entry in found)


def image_names(folder: Path, notes: FolderNotes | None = None) -> list[bytes]:
    """The images in ``folder`` and below, sorted, as the system has their names: ``b"1.jpg"``, ``b"session/2.jpg"``.

    Images are recognised by their ending. Pipes and devices are left out, whatever their name: reading one may never
    end.

    Args:
        folder: of one identity.
        notes: sees what is named and what is left out.
    """
    names: list[bytes] = []
    pending = [(os.fspath(folder), "", 0)]
    followed = {os.path.realpath(folder)}
    while pending:
        path, prefix, depth = pending.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    if notes is not None:
                        notes.leave_out(entry, "hidden")
                elif entry.name in SYSTEM_FOLDERS:
                    if notes is not None:
                        notes.leave_out(entry, _OF_SYSTEM)
                elif entry.is_dir():
                    if notes is not None:
                        notes.see(entry)
                        if entry.name.lower().endswith(IMAGE_SUFFIXES):
                            notes.leave_out(entry, "named as an image but a folder")
                    if not entry.is_symlink() or _is_new(entry, path, followed):
                        pending.append((entry.path, f"{prefix}{entry.name}/", depth + 1))
                    elif notes is not None:
                        notes.leave_out(entry, "links to a folder that is read already")
                elif _is_image(entry, notes):
                    if notes is not None:
                        notes.see(entry)
                        notes.take(entry, depth)
                    names.append(os.fsencode(prefix + entry.name))
    return sorted(names)


def _is_new(link: os.DirEntry[str], folder: str, followed: set[str]) -> bool:
    """Whether a link leads to a folder that is neither above it nor among those followed, which it joins."""
    real, here = os.path.realpath(link.path), os.path.realpath(folder)
    if real in followed or (here + os.sep).startswith(real.rstrip(os.sep) + os.sep):
        return False
    followed.add(real)
    return True


def _is_image(entry: os.DirEntry[str], notes: FolderNotes | None) -> bool:
    if not entry.name.lower().endswith(IMAGE_SUFFIXES):
        if notes is not None:
            notes.leave_out_ending(entry)
        return False
    if entry.is_file() or _is_broken(entry):
        return True
    if notes is not None:
        notes.leave_out(entry, "no file but a pipe or a device")
    return False


def _is_broken(entry: os.DirEntry[str]) -> bool:
    """Whether a link leads nowhere: whoever reads it says so."""
    return entry.is_symlink() and not Path(entry.path).exists()
