"""The samples of one tar file: where each image lies, and its label.

A sample is what has one key: ``KEY.jpg`` and ``KEY.cls``, the key being all up to the first dot of the file's name.
Names are compared and shown, never used as names of files.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from data.storage import Range, Store
from utils.text import parse_json

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "bmp")
LABEL_FIELDS = ("cls", "cls.txt", "label", "label.txt", "json")  # the first that a sample has counts
JSON_KEYS = ("label", "cls", "class", "identity")  # likewise
MOST_LABEL = 1 << 24  # as in records, whose float32 labels are exact up to there
_MAX_NAME, _MAX_LABEL_TEXT, _MAX_JSON = 256, 4096, 1 << 20
_MAX_READ = 16 << 20  # bytes that a header may make us read at once
_ENDS_LOOK = 64  # reads at the file's end, after which it is taken for an endless loop
_AFTER_END = 1 << 16  # bytes behind the end mark that are looked at
_UNREADABLE = (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError)
_PACKERS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class Samples(NamedTuple):
    """The n images of a shard, in the order in which they lie in it."""

    offsets: NDArray[np.int64]  # (n,) of the image's first byte
    sizes: NDArray[np.int64]  # (n,) bytes of the image
    labels: NDArray[np.int64] | NDArray[np.str_]  # (n,) numbers, or texts where one is no number; -1 or "": unknown
    problems: list[str]  # of samples without an image or a usable label


class NoPlainFileError(ValueError):
    """A member of a sound tar file that is of no use here."""


class _Sample:
    """What has been seen of one key."""

    __slots__ = ("fields", "images", "label", "label_field", "problem")

    def __init__(self) -> None:
        self.fields: list[str] = []
        self.images: list[tuple[str, int, int, int]] = []  # field, offset, size, offset of the member
        self.label = self.problem = ""
        self.label_field = len(LABEL_FIELDS)


def scan_shard(file: str, size: int, store: Store) -> Samples:
    """Read the headers and labels of a tar file.

    Raises:
        ValueError: it is compressed, cut short or damaged, has links or sparse files, or two members of one name;
            names file, member and byte offset.
    """
    window = Window(file, size, store)
    samples: dict[str, _Sample] = {}
    for member in _members(window):
        key, field = split_name(member.name)
        if not field:
            continue
        sample = samples.setdefault(key, _Sample())
        where = f"{file}: {member.name!r} at byte {member.offset}"
        if field in sample.fields:
            raise ValueError(f"{where}: the shard has two members of this name: pack it again under different keys")
        if len(sample.fields) > 100:
            raise ValueError(f"{where}: more than 100 files of one sample")
        sample.fields.append(field)
        if field.rpartition(".")[2] in IMAGE_FIELDS:
            sample.images.append((field, member.offset_data, member.size, member.offset))
        elif field in LABEL_FIELDS and (rank := LABEL_FIELDS.index(field)) < sample.label_field:
            _take_label(sample, rank, member, window, where)
    return _collect(file, samples)


def split_name(name: str) -> tuple[str, str]:
    """A member's key and field: ("a/b", "seg.png") of a/b.SEG.png; ("", "") for one that belongs to no sample."""
    name = name.removeprefix("./")
    folder, slash, last = name.rpartition("/")
    base, dot, field = last.partition(".")
    if not base or not dot or not field or (base.startswith("__") and base.endswith("__")):
        return "", ""
    return folder + slash + base, field.lower()


def _take_label(sample: _Sample, rank: int, member: tarfile.TarInfo, window: Window, where: str) -> None:
    most = _MAX_JSON if LABEL_FIELDS[rank] == "json" else _MAX_LABEL_TEXT
    label: str | None = ""
    problem = ""
    if member.size > most:
        problem = f"{where}: {member.size} bytes are no label, expected at most {most}"
    else:
        try:
            label = _label_of(LABEL_FIELDS[rank], window.at(member.offset_data, member.size))
        except ValueError as error:
            problem = f"{where}: {error}"
    if label is not None:
        sample.label, sample.problem, sample.label_field = label, problem, rank


def _label_of(field: str, content: bytes) -> str | None:
    """The label as text, None if this JSON has none; ValueError if it is no label."""
    text = content.decode("utf-8").strip().strip("\0")
    if field == "json":
        parsed = parse_json(text)
        value = (
            next((parsed[key] for key in JSON_KEYS if key in parsed), None) if isinstance(parsed, dict) else parsed
        )
        if value is None:
            return None
        is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not (is_whole or isinstance(value, str)):
            raise ValueError(f"the label is {str(value)[:60]!r}, expected a whole number or a name")
        text = value.strip() if isinstance(value, str) else str(int(value))
    if not text or len(text) > _MAX_NAME or "\n" in text:
        raise ValueError(f"the label is {text[:60]!r}, expected a whole number or a name in one line")
    text = re.sub(r"^([0-9]+)\.0*$", r"\1", text)
    if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?|nan", text) and not _is_label(text):
        raise ValueError(f"the label is {text[:60]}, expected a whole number from 0 to {MOST_LABEL}")
    return text


def _is_label(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= MOST_LABEL


def _collect(file: str, samples: dict[str, _Sample]) -> Samples:
    rows: list[tuple[int, int, str]] = []
    problems = []
    for key, sample in samples.items():
        images = [one for one in sample.images if one[0] in IMAGE_FIELDS] or sample.images
        fields = ", ".join(sample.fields[:12])
        if len(images) != 1:
            found = (
                f"several images ({', '.join(one[0] for one in images)})" if images else f"no image (only {fields})"
            )
            if len(images) > 1 and any("." in one[0] for one in images):
                found += ": a sample's key ends at the first dot of the name, so that names with dots fall together"
            expected = f"expected one of {', '.join(IMAGE_FIELDS)}"
            problems.append(f"{file}: sample {key!r} has {found}; {expected}, beside its label in the same shard")
            continue
        _, offset, size, at = images[0]
        if not sample.label:
            missing = f"no label among {fields}; expected KEY.cls, KEY.label or KEY.json with {', '.join(JSON_KEYS)}"
            problems.append(sample.problem or f"{file}: sample {key!r} at byte {at} has {missing}")
        rows.append((offset, size, sample.label))
    rows.sort()
    labels: Any = [label for _, _, label in rows]
    # Numbers as they are usually written; others stay texts until it is known whether the set has names.
    if all(not label or (label.isdecimal() and str(int(label)) == label) for label in labels):
        labels = np.array([int(label) if label else -1 for label in labels], np.int64)
    else:
        labels = np.array(labels, np.str_)
    offsets, sizes = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    return Samples(offsets, sizes, labels, problems)


class Window:
    """A file object for ``tarfile``: reads in blocks, no more at once than a sound header asks for."""

    def __init__(self, file: str, size: int, store: Store) -> None:
        self.file, self.size, self._store = file, size, store
        self._position = self._start = self._at_end = 0
        self._block = b""

    def seek(self, position: int, whence: int = 0) -> int:
        """Only from the start."""
        if whence or position < 0:
            raise ValueError(f"a header leads to byte {position}")
        self._position = position
        return position

    def tell(self) -> int:
        """The position of the next read."""
        return self._position

    def read(self, length: int = -1) -> bytes:
        """``length`` bytes, fewer at the file's end."""
        data = self.at(self._position, length)
        self._position += len(data)
        return data

    def at(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on, fewer at the file's end; ValueError for more than 16 MiB."""
        if not 0 <= length <= _MAX_READ:
            raise ValueError(f"a header of {length} bytes")
        if offset + length > self.size:
            self._at_end += 1
            if self._at_end > _ENDS_LOOK:
                raise ValueError("a header is not complete before the file's end")
            length = max(0, self.size - offset)
        if not self._start <= offset <= offset + length <= self._start + len(self._block):
            wanted = min(max(length, self._store.block), self.size - offset)
            self._start = offset
            (self._block,) = self._store.read_many([Range(self.file, offset, wanted)]) if wanted > 0 else (b"",)
        return self._block[offset - self._start : offset - self._start + length]


def _members(window: Window) -> Iterator[tarfile.TarInfo]:
    """The files in a tar, with offsets that are sound; raises as :func:`scan_shard`."""
    file, size = window.file, window.size
    start = window.at(0, min(size, 6))
    packer = next((name for magic, name in _PACKERS.items() if start.startswith(magic)), "")
    if packer:
        raise ValueError(f"{file}: it is compressed ({packer}), so that no image can be read alone: unpack it once")
    end, name = 0, "its first header"
    try:
        with tarfile.TarFile(fileobj=cast("BinaryIO", window), mode="r") as tar:  # never packed, never written
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all
                if member.size < 0 or member.offset < end or member.offset_data + member.size > size:
                    raise ValueError(f"{member.name!r} announces {member.size} bytes from {member.offset_data} on")
                end, name = member.offset_data + member.size, repr(member.name)
                if member.isdir():
                    continue
                _check_plain(file, member)
                yield member
            _check_end(window, tar.offset)
    except NoPlainFileError:
        raise
    except _UNREADABLE as error:
        raise ValueError(
            f"{file}: {size} bytes, after {name} (up to byte {end}): {error}; the shard is cut short or damaged, or "
            "of another form: copy or pack it again"
        ) from None


def _check_plain(file: str, member: tarfile.TarInfo) -> None:
    """Raise NoPlainFileError for a member whose bytes do not stand at its place."""
    if member.sparse is not None:
        kind, way = "a sparse file", "without --sparse"
    elif member.issym():
        kind, way = "a symbolic link", "with tar --dereference"
    elif member.islnk():
        kind, way = f"a hard link to {member.linkname!r}", "with tar --hard-dereference"
    elif member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        kind, way = "no file", "without it"
    else:
        return
    where = f"{file}: {member.name!r} at byte {member.offset}"
    raise NoPlainFileError(f"{where} is {kind}; expected plain files only: pack the shard again {way}")


def _check_end(window: Window, offset: int) -> None:
    """Raise ValueError unless a tar file ends here, with zeros; tarfile takes damage for the end."""
    mark = window.at(offset, 512)
    if len(mark) < 512:
        raise ValueError(f"it ends at byte {window.size} without the zeros that end a tar file")
    if any(mark):
        raise ValueError(f"no tar header at byte {offset}")
    if any(window.at(offset + 512, min(_AFTER_END, window.size - offset - 512))):
        raise ValueError(f"something follows its end at byte {offset}; give joined tar files one by one")
