"""Run by an interpreter that has mxnet: answers jobs until its input ends.

A job is a pickle of (command, arguments) in a file whose name comes in a line of input; a line of output says that
the answer has taken the job's place.
"""

import os
import pickle
import sys
from pathlib import Path

import mxnet as mx


def write(stem, records):
    """Write (key, payload) pairs to stem.rec and stem.idx."""
    writer = mx.recordio.MXIndexedRecordIO(f"{stem}.idx", f"{stem}.rec", "w")
    for key, payload in records:
        writer.write_idx(key, payload)
    writer.close()


def read(stem):
    """Every record of stem.rec by key, and all of them in file order without the index."""
    reader = mx.recordio.MXIndexedRecordIO(f"{stem}.idx", f"{stem}.rec", "r")
    by_key = {key: reader.read_idx(key) for key in reader.keys}
    reader.close()
    plain = mx.recordio.MXRecordIO(f"{stem}.rec", "r")
    in_order = list(iter(plain.read, None))
    plain.close()
    return by_key, in_order


def pack(label, image, id):
    return mx.recordio.pack(mx.recordio.IRHeader(0, label, id, 0), image)


def unpack(payload):
    header, image = mx.recordio.unpack(payload)
    label = header.label if isinstance(header.label, float) else header.label.tolist()
    return header.flag, label, header.id, header.id2, image


def faces(stem):
    """What arcface_torch's data set makes of stem.rec: the images' keys, and (label, image bytes) of each."""
    reader = mx.recordio.MXIndexedRecordIO(f"{stem}.idx", f"{stem}.rec", "r")
    header, _ = mx.recordio.unpack(reader.read_idx(0))
    keys = range(1, int(header.label[0])) if header.flag > 0 else reader.keys
    found = []
    for key in keys:
        header, image = mx.recordio.unpack(reader.read_idx(key))
        label = header.label if isinstance(header.label, float) else header.label[0]
        found.append((key, int(label), image))
    reader.close()
    return found


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")  # mxnet may print
    os.dup2(2, 1)
    commands = {"write": write, "read": read, "pack": pack, "unpack": unpack, "faces": faces}
    for line in sys.stdin:
        job = Path(line.rstrip("\n"))
        results = [commands[name](*arguments) for name, arguments in pickle.loads(job.read_bytes())]
        job.write_bytes(pickle.dumps(results))
        print("done", file=answers, flush=True)
