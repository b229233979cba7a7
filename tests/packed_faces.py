"""A few faces of three people to pack, and what is in the records."""

import numpy as np

from data.faces import FaceRecords
from made_faces import encode
from tools.pack_rec import main

PEOPLE = {
    "eve": {"b.jpg": encode(60), "a.png": encode(50, suffix=".png")},
    "ann": {"2.jpg": encode(20), "10.jpg": encode(10), "1.JPEG": encode(30), "notes.txt": b"no image"},
    "bob": {"only.jpg": encode(40)},
}


def run(*argv):
    return main([str(arg) for arg in argv])


def values(out):
    """The grey value of each image's right half, and its label."""
    faces = FaceRecords(out)
    loaded = [faces.load(i) for i in range(len(faces))]
    return [int(image[50, 100, 0]) for image, _ in loaded], [label for _, label in loaded]


def near(found, expected):
    return np.abs(np.subtract(found, expected)).max() <= 2
