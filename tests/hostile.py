"""Files that somebody may send to do harm: payloads that would run if their file were unpickled, and lying sizes."""

import io
import os
import pickle
import struct
import zlib

import numpy as np
import torch


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def saved(value, **options):
    """What torch.save writes."""
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def npy_bytes(array):
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def npz_bytes(**arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


PAYLOADS = {
    "pickle 0": lambda evil: pickle.dumps(evil, 0),
    "pickle 4": lambda evil: pickle.dumps([evil], 4),
    "pair set": lambda evil: pickle.dumps(([b"a", evil], [True]), 4),
    "torch": lambda evil: saved({"weight": torch.ones(1), "x": evil}),
    "old torch": lambda evil: saved({"weight": torch.ones(1), "x": evil}, _use_new_zipfile_serialization=False),
    "npy": lambda evil: npy_bytes(np.array([evil], object)),
    "npz": lambda evil: npz_bytes(x=np.array([evil], object)),
}


def npy_header(shape, descr="<f4"):
    """A .npy file that announces an array and ends after four bytes."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue() + bytes(4)


def png_header(width, height):
    """A PNG whose header announces a size, with hardly any pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
