"""From the entries of a list to images: lists come from other machines and systems than the images are on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from utils.list_text import IMAGE_ENDINGS, ListText, is_image
from utils.paths import ListedPaths

SAMPLE = 20  # entries by which it is found out how a list's paths are meant
_ENCODINGS = ("gb18030", "big5", "shift_jis", "euc_kr", "cp1252", "latin-1")

# ruff: noqa: PTH110, PTH118 (this runs once for each of millions of paths, and pathlib takes longer)


class ListedImages:
    r"""Turns entries into paths: Windows' separators, a folder that is not here, no ending, other encodings.

    An entry that is there as it is written is taken so. Only where none of the first entries is, ``\`` becomes ``/``,
    and what all of them start with is taken off if all are in ``listed.root`` without it.

    Args:
        listed: refuses what leads out of its folder.
        text: its ``encoding`` is set if the names on the disk are found in one.
        sample: the first entries.
    """

    def __init__(self, listed: ListedPaths, text: ListText, sample: Sequence[str]) -> None:
        self.listed, self.notes = listed, list[str]()
        self._slashes, self._prefix = False, ""
        sample = self._decoded(text, list(sample))
        if any("\\" in entry and not self._is_there(entry) for entry in sample) and os.sep == "/":
            self._slashes = True
            sample = [entry.replace("\\", "/") for entry in sample]
            self.notes.append("backslashes read as /")
        if sample and not any(map(self._is_there, sample)):
            self._prefix = self._find_prefix(sample)
        if self._prefix:
            self.notes.append(f"{self._prefix!r} taken off the paths, which are below {listed.root}")

    def path(self, entry: str, line: int) -> Path:
        """Where an image is, or should be; raises as ``ListedPaths.join``."""
        if self._slashes:
            entry = entry.replace("\\", "/")
        entry = entry.removeprefix(self._prefix)
        path = self.listed.join(entry, line)
        if is_image(entry) or path.is_file():
            return path
        found = next((ending for ending in IMAGE_ENDINGS if os.path.exists(f"{path}{ending}")), None)
        return path if found is None else self.listed.join(entry + found, line)

    def _is_there(self, entry: str) -> bool:
        return is_there(self.listed.root, entry)

    def _find_prefix(self, sample: Sequence[str]) -> str:
        first = sample[0]
        for at in [i + 1 for i, character in enumerate(first) if character == "/"]:
            prefix = first[:at]
            if all(e.startswith(prefix) and e != prefix and self._is_there(e[at:].lstrip("/")) for e in sample):
                return prefix + first[at : len(first) - len(first[at:].lstrip("/"))]
        return ""

    def _decoded(self, text: ListText, sample: list[str]) -> list[str]:
        strange = [entry for entry in sample if not entry.isascii() and _bytes(entry) is not None]
        if not strange or any(map(self._is_there, strange)):
            return sample
        for encoding in _ENCODINGS:
            try:
                decoded = {entry: (_bytes(entry) or b"").decode(encoding) for entry in strange}
            except UnicodeError:
                continue
            if any(self._is_there(entry.replace("\\", "/")) for entry in decoded.values()):
                text.encoding = encoding
                self.notes.append(f"read as {encoding}")
                return [decoded.get(entry, entry) for entry in sample]
        return sample


def is_there(root: Path, entry: str) -> bool:
    """Whether an image is there, as it is written or with an ending."""
    path = os.path.join(root, entry)
    return "\0" not in path and any(os.path.exists(path + ending) for ending in ("", *IMAGE_ENDINGS))


def _bytes(entry: str) -> bytes | None:
    """The bytes of an entry that is no UTF-8, else None."""
    try:
        entry.encode()
    except UnicodeEncodeError:
        return entry.encode("utf-8", "surrogateescape")
    return None
