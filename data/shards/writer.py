"""Writes WebDataset shards: ``KEY.jpg`` and ``KEY.cls``, the same bytes for the same images."""

from __future__ import annotations

import contextlib
import io
import re
import tarfile
import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from utils.atomic import open_atomic

OWN_NAME = re.compile(r"train-[0-9]{6}\.tar")
_BLOCK = 512
_END = bytes(2 * _BLOCK)


class ShardWriter:
    """Writes train-000000.tar, train-000001.tar, ... into a folder, all of them or none.

    A context manager: the shards grow in a hidden folder and get their places on a clean exit; earlier shards of such
    names are then removed.

    Args:
        folder: made if missing.
        shard_bytes: of a shard, at most; one image always fits.
    """

    def __init__(self, folder: str | Path, shard_bytes: int) -> None:
        self.folder, self.shard_bytes = Path(folder), shard_bytes
        self.images = self.shards = 0
        self._left = 0  # bytes that still fit into the shard that is being written
        self._file: BinaryIO | None = None

    def __enter__(self) -> ShardWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._temporary = tempfile.TemporaryDirectory(prefix=".shards.", dir=self.folder)
        self._current = contextlib.ExitStack()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._temporary as temporary:
            if kind is not None:
                self._current.__exit__(kind, error, trace)
                return
            self._finish()
            if not self.images:
                raise ValueError(f"{self.folder}: no images to write")
            for old in self.folder.iterdir():
                if OWN_NAME.fullmatch(old.name) or (old.name.startswith("shards-") and old.suffix == ".index"):
                    old.unlink()
            for shard in sorted(Path(temporary).iterdir()):
                shard.replace(self.folder / shard.name)

    def add(self, label: int, image: bytes | memoryview) -> None:
        """Append an image; its key is its number. ValueError if it is no JPEG, PNG, WebP or BMP."""
        image = bytes(image)
        key, text = f"{self.images:09d}", str(label).encode()
        data = _member(f"{key}.{image_field(image)}", image) + _member(f"{key}.cls", text)
        if self._file is None or len(data) > self._left:
            self._finish()
            name = f"train-{self.shards:06d}.tar"
            self._file = self._current.enter_context(open_atomic(Path(self._temporary.name) / name))
            self._left = self.shard_bytes - len(_END)
            self.shards += 1
        self._file.write(data)
        self._left -= len(data)
        self.images += 1

    def _finish(self) -> None:
        if self._file is not None:
            self._file.write(_END)
            self._current.close()
            self._file = None


def image_field(image: bytes) -> str:
    """The ending that an encoded image's first bytes ask for; ValueError if they are no image's."""
    if image.startswith(b"\xff\xd8"):
        return "jpg"
    if image.startswith(b"\x89PNG"):
        return "png"
    if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
        return "webp"
    if image.startswith(b"BM"):
        return "bmp"
    raise ValueError("it is no JPEG, PNG, WebP or BMP, so that a shard has no name for it")


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)  # of no user and no time
    info.size = len(data)
    out = io.BytesIO()
    out.write(info.tobuf(tarfile.USTAR_FORMAT))
    out.write(data)
    out.write(bytes(-len(data) % _BLOCK))
    return out.getvalue()
