"""The reading path of insightface's arcface_torch, re-created on mxnet's own reader, for a side-by-side measurement.

``mxnet_reader.py REC IDX`` is run by an interpreter with mxnet, numpy and pillow, and uses nothing of this project. A
line of its input is a job in JSON, a line of its output how long that took:

    {"what": "open"}                                   read the index, open the file
    {"what": "read", "keys": [...]}                    MXIndexedRecordIO.read_idx of each key
    {"what": "decode", "keys": [...], "batch": 128}    the same, unpacked, decoded by mx.image.imdecode, turned into a
                                                       PIL image, flipped half the time, made a float32 array of
                                                       (3, H, W) in [-1, 1], stacked into batches

There is no torch for mxnet's old numpy, so torchvision's ToTensor and Normalize appear here as the numpy operations
that they are made of: copy, divide by 255, transpose, subtract, divide.
"""

import json
import os
import random
import sys
import time
from typing import Any

import mxnet as mx
import numpy as np
from PIL import Image

MEAN = np.full((3, 1, 1), 0.5, np.float32)
STD = np.full((3, 1, 1), 0.5, np.float32)


def load(records: Any, key: int) -> tuple[Any, int]:
    """One image, (3, H, W) float32 in [-1, 1], and its label."""
    header, encoded = mx.recordio.unpack(records.read_idx(key))
    label = header.label if isinstance(header.label, float) else header.label[0]
    picture = Image.fromarray(mx.image.imdecode(encoded).asnumpy())
    if random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tensor = np.ascontiguousarray(np.array(picture, copy=True).transpose(2, 0, 1)).astype(np.float32)
    tensor /= 255
    tensor -= MEAN
    tensor /= STD
    return tensor, int(label)


def run(job: dict[str, Any], rec: str, idx: str, records: Any) -> list[int]:
    """Do a job; the keys that it dealt with."""
    if job["what"] == "open":
        return list(mx.recordio.MXIndexedRecordIO(idx, rec, "r").keys)
    keys: list[int] = job["keys"]
    if job["what"] == "read":
        for key in keys:
            records.read_idx(key)
        return keys
    for start in range(0, len(keys), job["batch"]):
        loaded = [load(records, key) for key in keys[start : start + job["batch"]]]
        np.stack([image for image, _ in loaded])
        np.array([label for _, label in loaded], np.int64)
    return keys


def main() -> None:
    """Answer jobs until the input ends."""
    answers = os.fdopen(os.dup(1), "w")  # mxnet may print; answers have a channel of their own
    os.dup2(2, 1)
    rec, idx = sys.argv[1:]
    records = mx.recordio.MXIndexedRecordIO(idx, rec, "r")
    print(json.dumps({"mxnet": mx.__version__, "numpy": np.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        start = time.perf_counter()
        done = run(job, rec, idx, records)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "records": len(done)}), file=answers, flush=True)


if __name__ == "__main__":
    main()
