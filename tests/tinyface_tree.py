"""A small tree of made-up faces, laid out as TinyFace's test set is."""

import numpy as np

from made_faces import encode, make_folder


def make_tinyface(root, distractors=2):
    rng = np.random.default_rng(0)
    looks = {person: int(rng.integers(0, 256)) for person in range(1, 6)}
    make_folder(root, {"Gallery_Match": {f"{p}_{i}.jpg": encode(looks[p]) for p in looks for i in range(2)}})
    make_folder(root, {"Probe": {f"{p}_7.jpg": encode(looks[p]) for p in looks}})
    for i in range(distractors):  # in folders of their own, as they are published
        (root / "Gallery_Distractor" / str(i)).mkdir(parents=True)
        (root / "Gallery_Distractor" / str(i) / f"{i}.jpg").write_bytes(encode(i))
    return root
