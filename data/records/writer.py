"""Writers of record files: any records, and faces in insightface's form."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from data.records.layout import EXACT_LABELS, MAGIC, MAX_PART, PART, pack, split
from utils.atomic import open_atomic


class RecordWriter:
    """Writes a .rec file and its .idx, complete or not at all.

    A context manager: both files grow under temporary names, get their own on a clean exit, and are removed
    if an exception leaves the block.

    Args:
        rec_path: the .rec file, with its index beside it; older ones are replaced at the end.
    """

    def __init__(self, rec_path: str | Path) -> None:
        self.rec_path = Path(rec_path)
        self.idx_path = self.rec_path.with_suffix(".idx")
        self._files = contextlib.ExitStack()
        self._end = 0  # bytes written

    def __enter__(self) -> RecordWriter:
        with contextlib.ExitStack() as files:
            self._idx = files.enter_context(open_atomic(self.idx_path))
            self._rec = files.enter_context(open_atomic(self.rec_path))
            files.push(self._before_the_names)  # the last in is the first out
            self._files = files.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)

    def write(self, key: int, payload: bytes) -> None:
        """Append one record.

        Raises:
            ValueError: a part of the payload has 2^29 bytes or more, or the key is negative.
        """
        if key < 0:
            raise ValueError(f"{self.rec_path}: keys start at 0, got {key}")
        record = self._encode(key, payload)
        self._idx.write(b"%d\t%d\n" % (key, self._end))
        self._rec.write(record)
        self._end += len(record)

    def rewrite(self, offset: int, key: int, payload: bytes) -> None:
        """Replace the payload of the record at this byte offset by one of the same length."""
        self._rec.seek(offset)
        self._rec.write(self._encode(key, payload))
        self._rec.seek(self._end)

    def _encode(self, key: int, payload: bytes) -> bytes:
        parts = split(payload)
        if max(map(len, parts)) > MAX_PART:
            raise ValueError(f"{self.rec_path}: record key {key}: {len(payload)} bytes are over {MAX_PART}")
        last = len(parts) - 1
        chunks = []
        for i, part in enumerate(parts):
            kind = 0 if last == 0 else 1 if i == 0 else 3 if i == last else 2
            chunks += [PART.pack(MAGIC, kind << 29 | len(part)), part, bytes(-len(part) % 4)]
        return b"".join(chunks)

    def _before_the_names(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._rec.flush()  # a full disk shows here, with the old files still whole
            self._idx.flush()
            # An old index must not lie beside new records, should the process end between two renames.
            self.idx_path.unlink(missing_ok=True)


class FaceRecordWriter:
    """Writes train.rec, train.idx and property in insightface's form, image by image.

    Record 0 has the labels ``[end, end + identities]``; images are keys 1 .. end - 1, identity by identity;
    keys from ``end`` on hold each identity's half-open range of keys. Takes 8 bytes of memory an identity.

    A context manager like :class:`RecordWriter`; the clean exit raises ValueError if there was no image.

    Args:
        folder: made if missing.
        image_size: (height, width) of the images, for ``property``.
    """

    def __init__(self, folder: str | Path, image_size: tuple[int, int] = (112, 112)) -> None:
        self.folder, self.image_size = Path(folder), image_size
        self.next_key = 1  # images written + 1
        self._starts = array("q")  # each identity's first key

    @property
    def identities(self) -> int:
        """Identities begun so far."""
        return len(self._starts)

    def __enter__(self) -> FaceRecordWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._records = RecordWriter(self.folder / "train.rec")
        self._records.__enter__()
        self._records.write(0, range_record(0, 0, 0))  # its place; what it holds is known at the end
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException as problem:
            self._records.__exit__(type(problem), problem, problem.__traceback__)
            raise
        self._records.__exit__(kind, error, trace)

    def add(self, label: int, image: bytes) -> None:
        """Append an image of identity ``label``: the current one, or the next.

        Raises:
            ValueError: identities out of order, or more than a float32 label tells apart.
        """
        if label == self.identities:
            if label >= EXACT_LABELS:
                raise ValueError(f"more than {EXACT_LABELS} identities: float32 labels are exact up to there only")
            self._starts.append(self.next_key)
        elif label != self.identities - 1:
            raise ValueError(f"identity {label} after identity {self.identities - 1}: write them one after another")
        self._records.write(self.next_key, pack(label, image, self.next_key))
        self.next_key += 1

    def _finish(self) -> None:
        if not self._starts:
            raise ValueError(f"{self.folder}: no identities to write")
        end = self.next_key
        for i, start in enumerate(self._starts):
            stop = self._starts[i + 1] if i + 1 < self.identities else end
            self._records.write(end + i, range_record(start, stop, end + i))
        self._records.rewrite(0, 0, range_record(end, end + self.identities, 0))
        write_property(self.folder, self.identities, self.image_size)


def range_record(start: int, stop: int, key: int) -> bytes:
    """The payload of insightface's header record or of an identity's: a range of keys and no image.

    Past 2^24 a float32 does not hold every key. Record 0 is then rounded down, so that a reader meets no record
    without an image, and an identity's range inwards, so that it holds no image of another.
    """
    low, high = np.float32(start), np.float32(stop)
    if key == 0 and int(low) > start:
        low = np.nextafter(low, np.float32(0))
    if key > 0 and int(low) < start:
        low = np.nextafter(low, np.float32(np.inf))
    if int(high) > stop:
        high = np.nextafter(high, np.float32(0))
    return pack([float(low), float(high)], id=key)


def write_property(folder: Path, identities: int, image_size: tuple[int, int]) -> None:
    """Write the file ``property``: ``identities,height,width``."""
    with open_atomic(folder / "property") as file:
        file.write(f"{identities},{image_size[0]},{image_size[1]}\n".encode())


def write_face_records(
    folder: str | Path, faces: Sequence[Sequence[bytes]], image_size: tuple[int, int] = (112, 112)
) -> None:
    """Write the encoded images of each identity with a :class:`FaceRecordWriter`; identity i gets label i.

    Raises:
        ValueError: no identity, an identity without an image, or more identities than a float32 label tells apart.
    """
    empty = next((i for i, images in enumerate(faces) if len(images) == 0), None)
    if len(faces) == 0 or empty is not None:
        raise ValueError("no identities to write" if empty is None else f"identity {empty} has no image")
    with FaceRecordWriter(folder, image_size) as writer:
        for label, images in enumerate(faces):
            for image in images:
                writer.add(label, image)
