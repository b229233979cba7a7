"""No file runs code: every payload behind every door that reads a file. None takes memory for what it announces."""

import json
import struct
import tracemalloc
import zlib

import pytest
import torch

from backbones.weights import read_state_dict
from data.databases import read_label_list
from data.faces import read_class_names
from data.joined import JoinedSets
from data.records.layout import MAGIC, MAX_PART, PART
from data.records.reader import RecordReader
from dataset import open_faces
from embedder.load import load_embedder
from embedder.photos import load_face, read_landmarks
from eval.ijb.cache import EmbeddingCache
from eval.ijb.lists import read_lists
from eval.pairs.bin_file import load_bin
from eval.pairs.sets import load_list
from face_files import make_image_folder
from heads.saved import open_heads
from hostile import PAYLOADS, Payload, npy_bytes, npy_header, npz_bytes, png_header, saved
from model_files import save_random_model
from tools.parts.pack_sources import ListFiles
from tools.parts.run_faces import open_run_faces
from training.checkpoint import load_training
from training.metrics import MetricsWriter
from training.start import start_from
from utils.config import get_config
from utils.decode import decode_rgb
from utils.npy import load_npy

GIGABYTES = 1 << 40


def in_folder(name, read):
    """A door that reads ``name`` in the folder, and what lies there."""

    def door(folder, content):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return read(folder, path)

    return door


def read_set_with_index(folder, index):
    (folder / "train.rec").write_bytes(bytes(64))
    return open_faces(folder)


def read_heads(folder, path):
    for name, kind in (("heads", torch.int64), ("visits", torch.int32)):
        (path.parent / f"{name}.npy").write_bytes(npy_bytes(torch.zeros(0, dtype=kind).numpy()))
    return open_heads(folder, {"num_classes": 4, "head_size": 1, "embedding_size": 2, "seed": 0}, None)


def read_joined(folder, path):
    sets = [open_faces(make_image_folder(folder / "faces"))]
    return JoinedSets(sets, class_map=path).numbering


def read_beside_model(folder, path):
    save_random_model(folder, "rtiny")
    return load_embedder(folder)


def read_ijb_lists(folder, path):
    (folder / "loose_crop").mkdir()
    for what in ("name_5pts_score", "template_pair_label"):
        (folder / "meta" / f"ijbb_{what}.txt").write_text("a.jpg 1 2\n")
    return read_lists(folder, "IJBB")


DOORS = {
    "weights": in_folder("model.pt", lambda _, path: read_state_dict(path, ["weight"])),
    "first weights": in_folder("a.pth", lambda _, path: start_from(torch.nn.Linear(1, 1), path)),
    "network": in_folder("model.pt", lambda _, path: load_embedder(path)),
    "onnx": in_folder("net.onnx", lambda _, path: load_embedder(path)),
    "run's settings": in_folder("config.json", read_beside_model),
    "run's data": in_folder("config.json", lambda folder, _: open_run_faces(folder)),
    "verification set": in_folder("a.bin", lambda _, path: load_bin(path)),
    "csv": in_folder("a.csv", lambda _, path: load_list(path)),
    "LFW list": in_folder("a.txt", lambda folder, path: load_list(path, root=folder)),
    "list of faces": in_folder("a.lst", lambda folder, path: ListFiles(path, folder)),
    "IJB lists": in_folder("meta/ijbb_face_tid_mid.txt", read_ijb_lists),
    "array": in_folder("a.npy", lambda _, path: load_npy(path)),
    "mapped array": in_folder("a.npy", lambda _, path: load_npy(path, is_mapped=True)),
    "index": in_folder("train.idx", read_set_with_index),
    "classes": in_folder("classes.json", lambda folder, _: read_class_names(folder / "train.rec")),
    "class map": in_folder("map.json", read_joined),
    "image": in_folder("a.jpg", lambda _, path: decode_rgb(path.read_bytes())),
    "photo": in_folder("a.jpg", lambda _, path: load_face(path, None)),
    "shard": in_folder("a.tar", lambda _, path: open_faces(path)),
    "database": in_folder("data.mdb", lambda folder, _: open_faces(folder)),
    "labels of a database": in_folder("labels.txt", lambda _, path: read_label_list(path)),
    "landmarks": in_folder("points.txt", lambda _, path: read_landmarks(str(path))),
}
CHECKPOINTS = {
    "training": in_folder("training.pt", lambda folder, _: load_training(folder)),
    "heads": in_folder(
        "heads/rank_0_of_1/layer_0/weight.npy", lambda folder, path: read_heads(folder / "heads", path)
    ),
}


CASES = [(door, payload) for door in DOORS | CHECKPOINTS for payload in PAYLOADS]


@pytest.mark.parametrize(("door", "payload"), CASES)
def test_no_payload_runs_behind_any_door(tmp_path, door, payload):
    marker = tmp_path / "ran"
    folder = tmp_path / "given"
    folder.mkdir()
    with pytest.raises(ValueError) as caught:
        (DOORS | CHECKPOINTS)[door](folder, PAYLOADS[payload](Payload(marker)))
    assert not marker.exists()
    text = str(caught.value)
    if door != "image":
        assert str(folder) in text
    assert "\n" not in text
    assert len(text) < 1000
    assert "weights_only" not in text  # torch's advice to switch it off


@pytest.mark.parametrize("payload", PAYLOADS)
def test_payloads_would_run_if_unpickled(tmp_path, payload):
    """The test above can fail: each payload does run where somebody asks for it."""
    import io
    import pickle

    import numpy as np

    marker = tmp_path / "ran"
    content = PAYLOADS[payload](Payload(marker))
    if "torch" in payload:
        torch.load(io.BytesIO(content), weights_only=False)
    elif payload == "npz":
        np.load(io.BytesIO(content), allow_pickle=True)["x"]
    elif payload == "npy":
        np.load(io.BytesIO(content), allow_pickle=True)
    else:
        pickle.loads(content)
    assert marker.is_dir()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_cache_with_a_payload_is_made_again(tmp_path, payload):
    marker = tmp_path / "ran"
    content = PAYLOADS[payload](Payload(marker))
    name = f"{0:09d}-{3:09d}-{zlib.crc32(content):08x}.npy"
    (tmp_path / name).write_bytes(content)
    assert EmbeddingCache(tmp_path, 3).missing() == ([(0, 3)], [name])
    assert not marker.exists()


def peak_of(call):
    """Bytes that Python and numpy took at most, and the error."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            call()
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 33,), (1 << 28,), (1 << 20, 1 << 20), (-1,)])
@pytest.mark.parametrize("is_mapped", [True, False])
def test_an_array_that_announces_more_than_it_has_takes_no_memory(tmp_path, shape, is_mapped):
    path = tmp_path / "a.npy"
    path.write_bytes(npy_header(shape))
    peak, text = peak_of(lambda: load_npy(path, is_mapped))
    assert "announces" in text
    assert peak < 1 << 20
    peak, _ = peak_of(lambda: load_npy(path.read_bytes()))
    assert peak < 1 << 20


def test_a_cache_that_announces_more_than_it_has_is_made_again(tmp_path):
    content = npy_header((3, 1 << 38))
    name = f"{0:09d}-{3:09d}-{zlib.crc32(content):08x}.npy"
    (tmp_path / name).write_bytes(content)
    assert EmbeddingCache(tmp_path, 3).missing() == ([(0, 3)], [name])


@pytest.mark.parametrize("kind", [0, 1])
def test_a_record_that_announces_half_a_gigabyte_takes_no_memory(tmp_path, kind):
    (tmp_path / "train.rec").write_bytes(PART.pack(MAGIC, kind << 29 | MAX_PART) + bytes(100))
    (tmp_path / "train.idx").write_text("0\t0\n")
    reader = RecordReader(tmp_path / "train.rec")
    for read in (lambda: reader.read_at(0), lambda: reader.read_many([0])):
        peak, text = peak_of(read)
        assert peak < 1 << 20
        assert "train.rec: record key 0 at byte 0: truncated: expected 536870911 bytes" in text


def test_a_set_that_announces_gigabytes_takes_no_memory(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", GIGABYTES) + b"abc.")
    peak, text = peak_of(lambda: load_bin(path))
    assert "reaches beyond the file's" in text
    assert peak < 1 << 20


@pytest.mark.parametrize("compression", [0, 8])
def test_weights_that_unfold_to_more_than_their_file_are_refused(tmp_path, compression):
    """By compression, or by parts that lie over one another."""
    import io
    import zipfile

    whole = zipfile.ZipFile(io.BytesIO(saved({"weight": torch.zeros(1 << 18)})))
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", compression) as out:
        for name in whole.namelist():
            out.writestr(name, whole.read(name))
        if not compression:
            out.filelist += [part for part in out.filelist if part.file_size > 1000] * 100
    with pytest.raises(ValueError, match=r"model\.pt unfolds to .* bytes from"):
        load_embedder(path)


def test_an_endless_vector_makes_no_endless_network(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(saved({"features.bias": torch.zeros(1).expand(1 << 40)}))
    with pytest.raises(ValueError, match="announces 1,099,511,627,776 numbers, more than the file holds"):
        load_embedder(path)


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_photo_that_announces_a_giant_is_named(tmp_path, side):
    path = tmp_path / "a.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(ValueError, match=r"a\.png: its header announces more pixels"):
        load_face(path, None)


JSON_DOORS = ("run's settings", "run's data", "classes", "class map")


@pytest.mark.parametrize("door", JSON_DOORS)
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
def test_deep_json_is_refused_by_name(tmp_path, door, text):
    with pytest.raises(ValueError, match="deep") as caught:
        DOORS[door](tmp_path, text.encode())
    assert ".json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_foreign_lines_of_metrics_are_dropped_and_counted(tmp_path, caplog):
    good = json.dumps({"step": 1, "lfw/accuracy": 0.5}) + "\n"
    lines = [good, '{"a":' * 100_000 + "}\n", '{"step": "x"}\n', "[1, {}\n", '{"step": 9}\n', "half"]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    with MetricsWriter(tmp_path, 5, get_config("demo")) as metrics:
        assert (tmp_path / "metrics.jsonl").read_text() == good
        assert metrics.highest("lfw/accuracy") == 0.5
    assert "3 lines hold no step's metrics and are dropped" in caplog.text


def test_an_archive_of_arrays_is_no_array(tmp_path):
    with pytest.raises(ValueError, match=r"no \.npy file"):
        load_npy(npz_bytes(a=torch.zeros(3).numpy()))
