"""Which records of a file are images, and whose: the same questions for both families."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.records.check import check_records, find_stop
from data.records.reader import REBUILD, RecordReader
from utils.decode import decode_rgb


class ImageSpan(NamedTuple):
    """The images are records ``keys[start:stop]``."""

    is_insightface: bool  # record 0 is the header record; identity records may follow the images
    start: int
    stop: int


def find_images(reader: RecordReader) -> ImageSpan:
    """Find the family, and where the images lie; only headers are read.

    Raises:
        ValueError: no record holds an image.
    """
    first = reader.scan_headers(0, 1, damaged="mark")
    stop = find_stop(reader)
    is_insightface = int(first.flags[0]) >= 0 and not first.has_image[0]
    start = int(is_insightface)
    if stop <= start:
        raise ValueError(
            f"{reader.rec_path}: none of its {len(reader)} records holds an image; if {reader.idx_path.name} is cut "
            f"short, {REBUILD.format(reader.rec_path)}"
        )
    return ImageSpan(is_insightface, start, stop)


def read_labels(
    reader: RecordReader, span: ImageSpan, say: Callable[[str], object] | None = None
) -> NDArray[np.int64]:
    """The label of each image in ``span``, the first of a vector; one pass over the headers.

    Args:
        reader: of the file.
        span: its images.
        say: takes the note on identity records that disagree with the labels, if there is one.

    Returns:
        (N,) in the order of the keys.

    Raises:
        ValueError: a record is damaged, has no image or a label that is no identity, or file and index disagree;
            names file, key and offset.
    """
    check = check_records(reader, span.start, span.stop)
    if problem := check.problem or check.unlisted:
        raise ValueError(problem)
    if check.note and say is not None:
        say(check.note)
    return check.labels_N


def first_image_size(reader: RecordReader, span: ImageSpan) -> tuple[int, int]:
    """(height, width) of the first image; ValueError if it does not decode."""
    _, encoded = reader.read_face(span.start)
    try:
        height, width = decode_rgb(encoded).shape[:2]
    except ValueError as error:
        raise ValueError(f"{reader.where(span.start)}: {error}") from None
    return height, width
