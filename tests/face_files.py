"""Small record files and image folders, their faces told apart by one grey value each."""

import cv2
import numpy as np

from data.records.layout import pack
from data.records.writer import RecordWriter


def face(value, size=(112, 112)):
    """A PNG of one grey value, which tells images apart."""
    return cv2.imencode(".png", np.full((*size, 3), value, np.uint8))[1].tobytes()


FACES = [[face(10), face(11)], [face(20)], [face(30), face(31), face(32)]]
VALUES, LABELS = [10, 11, 20, 30, 31, 32], [0, 0, 1, 2, 2, 2]


def contents(dataset):
    loaded = [dataset.load(i) for i in range(len(dataset))]
    return [int(image[0, 0, 0]) for image, _ in loaded], [label for _, label in loaded]


def write(folder, payloads):
    """A train.rec with these (key, payload) records."""
    with RecordWriter(folder / "train.rec") as writer:
        for key, payload in payloads:
            writer.write(key, payload)
    return folder


def record(reader, key):
    """The payload of the record with this key."""
    position = int(np.searchsorted(reader.keys, key))
    assert reader.index.key(position) == key
    return reader.read_at(position)


def index_bytes(index):
    """Memory that an index takes."""
    return sum(array.nbytes for array in vars(index).values() if isinstance(array, np.ndarray))


def insightface_records(end=7.0, identities=3):
    """What write_face_records makes of FACES, with a choice of what the header record claims."""
    images = [(key, pack(LABELS[key - 1], face(VALUES[key - 1]), key)) for key in range(1, 7)]
    ranges = [(7 + i, pack([0, 0])) for i in range(identities)]
    return [(0, pack([end, end + identities])), *images, *ranges]


def make_image_folder(root):
    """FACES as three folders."""
    for identity, images in zip(("a", "b", "c"), FACES, strict=True):
        (root / identity).mkdir(parents=True)
        for i, image in enumerate(images):
            (root / identity / f"{i}.png").write_bytes(image)
    return root
