"""From the entries of a list to images: lists come from other machines and systems than the images are on."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from utils.list_text import IMAGE_ENDINGS, ListText, is_image
from utils.paths import ListedPaths

SAMPLE = 20  # entries by which it is found out how a list's paths are meant
_ENCODINGS = ("gb18030", "big5", "shift_jis", "euc_kr", "cp1252", "latin-1")

# ruff: noqa: PTH110, PTH118 (this runs once for each of millions of paths, and pathlib takes longer)


class ListedImages:
    r"""Turns entries into paths: Windows' separators, a folder that is not here, no ending, other spellings of names.

    An entry that is there as it is written is taken so. Only where none of the sample is, ``\`` becomes ``/``, and
    what most of it starts with is taken off if those images are in ``listed.root`` without it.

    Args:
        listed: refuses what leads out of its folder.
        text: its ``encoding`` is set if the names on the disk are found in one.
        sample: entries, best from all over the list.
    """

    def __init__(self, listed: ListedPaths, text: ListText, sample: Sequence[str]) -> None:
        self.listed, self.notes = listed, list[str]()
        self._slashes, self._prefixes, self._spelling = False, list[str](), ""
        sample = self._decoded(text, list(sample))
        if any("\\" in entry and not self._is_there(entry) for entry in sample) and os.sep == "/":
            self._slashes = True
            sample = [entry.replace("\\", "/") for entry in sample]
            self.notes.append("backslashes read as /")
        self._find_spelling(sample)
        if sample and not any(map(self._is_there, sample)):
            self._prefixes = self._find_prefixes(sample)
        if self._prefixes:
            prefixes = " and ".join(map(repr, self._prefixes))
            self.notes.append(f"{prefixes} taken off the paths, which are below {listed.root}")

    def path(self, entry: str, line: int) -> Path:
        """Where an image is, or should be; raises as ``ListedPaths.join``."""
        if self._slashes:
            entry = entry.replace("\\", "/")
        prefix = next((prefix for prefix in self._prefixes if entry.startswith(prefix)), "")
        entry = _spelled(entry[len(prefix) :], self._spelling)
        path = self.listed.join(entry, line)
        if is_image(entry) or path.is_file():
            return path
        found = next((ending for ending in IMAGE_ENDINGS if os.path.exists(f"{path}{ending}")), None)
        return path if found is None else self.listed.join(entry + found, line)

    def _is_there(self, entry: str) -> bool:
        return is_there(self.listed.root, _spelled(entry, self._spelling))

    def _is_below(self, entry: str) -> bool:
        """Whether an image is there, or would be without what it starts with."""
        return any(self._is_there(entry[at:]) for at in (0, *_cuts(entry)))

    def _find_prefixes(self, sample: Sequence[str]) -> list[str]:
        """What most entries start with and the disk does not; several only if they differ in a drive's letter."""
        found: Counter[str] = Counter()
        for entry in sample:
            at = next((at for at in _cuts(entry) if self._is_there(entry[at:])), 0)
            found.update([entry[:at]] * bool(at))
        if not found:
            return []
        usual = _without_drive(max(found, key=found.__getitem__))
        prefixes = sorted(prefix for prefix in found if _without_drive(prefix) == usual)
        return prefixes if 2 * sum(found[prefix] for prefix in prefixes) > len(sample) else []

    def _find_spelling(self, sample: Sequence[str]) -> None:
        """How the disk spells names that are not ASCII: composed, decomposed, or in an encoding that is no UTF-8."""
        strange = [entry for entry in sample if not entry.isascii() and _bytes(entry) is None]
        best, most = "", sum(map(self._is_below, strange))
        for spelling in ("NFC", "NFD", *_ENCODINGS) if most < len(strange) else ():
            self._spelling = spelling
            if (found := sum(map(self._is_below, strange))) > most:
                best, most = spelling, found
        self._spelling = best
        if best:
            self.notes.append(f"names on the disk are {best}")

    def _decoded(self, text: ListText, sample: list[str]) -> list[str]:
        strange = [entry for entry in sample if not entry.isascii() and _bytes(entry) is not None]
        if not strange or any(map(self._is_there, strange)):
            return sample
        for encoding in _ENCODINGS:
            try:
                decoded = {entry: (_bytes(entry) or b"").decode(encoding) for entry in strange}
            except UnicodeError:
                continue
            if any(self._is_below(entry.replace("\\", "/")) for entry in decoded.values()):
                text.encoding = encoding
                self.notes.append(f"read as {encoding}")
                return [decoded.get(entry, entry) for entry in sample]
        return sample


def is_there(root: Path, entry: str) -> bool:
    """Whether an image is there, as it is written or with an ending."""
    path = os.path.join(root, entry)
    return "\0" not in path and any(os.path.exists(path + ending) for ending in ("", *IMAGE_ENDINGS))


def _cuts(entry: str) -> list[int]:
    """Where what stands behind a / starts."""
    return [match.end() for match in re.finditer("/+", entry) if match.end() < len(entry)]


def _without_drive(prefix: str) -> str:
    return prefix[2:] if prefix[1:2] == ":" else prefix


def _spelled(entry: str, spelling: str) -> str:
    """An entry as the disk spells it."""
    if not spelling or entry.isascii():
        return entry
    if spelling in ("NFC", "NFD"):
        return unicodedata.normalize("NFC" if spelling == "NFC" else "NFD", entry)
    try:
        return os.fsdecode(entry.encode(spelling))
    except UnicodeError:
        return entry


def _bytes(entry: str) -> bytes | None:
    """The bytes of an entry that is no UTF-8, else None."""
    try:
        entry.encode()
    except UnicodeEncodeError:
        return entry.encode("utf-8", "surrogateescape")
    return None
