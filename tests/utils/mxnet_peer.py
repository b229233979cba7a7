"""Run by an interpreter that has mxnet: `mxnet_peer.py JOB ANSWER`, two pickles.

JOB is a list of (command, arguments); ANSWER is the list of results.
"""

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


if __name__ == "__main__":
    job, answer = map(Path, sys.argv[1:])
    commands = {"write": write, "read": read, "pack": pack, "unpack": unpack}
    results = [commands[name](*arguments) for name, arguments in pickle.loads(job.read_bytes())]
    answer.write_bytes(pickle.dumps(results))
