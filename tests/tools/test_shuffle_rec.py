import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data.faces import FaceRecords
from data.records.layout import pack
from data.records.reader import RecordReader
from data.records.writer import RecordWriter, write_face_records
from made_faces import contents, encode
from mxnet_server import mxnet_commands
from paths import ROOT
from tools.shuffle_rec import main, shuffle_records

FACES = [[encode(10 * i + k) for k in range(1 + i % 5)] for i in range(20)]


def run(*argv):
    return main([str(arg) for arg in argv])


def payloads(path):
    reader = RecordReader(path)
    return list(map(bytes, reader.read_many(range(len(reader)))))


@pytest.fixture
def source(tmp_path):
    write_face_records(tmp_path / "in", FACES)
    (tmp_path / "in" / "classes.json").write_text(json.dumps([f"n{i}" for i in range(20)]))
    return tmp_path / "in"


@pytest.mark.parametrize("memory_mb", [1024, 1])
@pytest.mark.parametrize("by_file", [True, False])
def test_the_same_payloads_in_another_order(source, tmp_path, memory_mb, by_file):
    out = tmp_path / "out"
    assert run(source / "train.rec" if by_file else source, out, "--seed", 5, "--memory-mb", memory_mb) == 0
    images = payloads(source / "train.rec")[1:-20]
    mixed = payloads(out / "train.rec")
    assert sorted(mixed) == sorted(images)
    assert mixed != images
    reader = RecordReader(out / "train.rec")
    assert reader.keys.tolist() == list(range(len(images)))
    assert reader.index.is_in_file_order
    before, after = FaceRecords(source), FaceRecords(out)
    assert not after.is_insightface
    assert sorted(after.labels.tolist()) == sorted(before.labels.tolist())
    assert (out / "property").read_text() == (source / "property").read_text()
    assert json.loads((out / "classes.json").read_text()) == [f"n{i}" for i in range(20)]
    assert sorted(contents(out)) == ["classes.json", "property", "train.idx", "train.rec"]


def test_the_memory_does_not_change_the_result(tmp_path):
    """The file is of 3 MB: one part, three, and as many parts as MB."""
    write_face_records(tmp_path / "in", [[encode(i) + bytes(30_000)] for i in range(110)])
    for memory_mb in (1024, 2, 1):
        shuffle_records(tmp_path / "in" / "train.rec", tmp_path / str(memory_mb), 7, memory_mb)
    assert contents(tmp_path / "1024") == contents(tmp_path / "2") == contents(tmp_path / "1")
    assert (tmp_path / "in" / "train.rec").stat().st_size > 3 << 20


def test_neighbours_are_mixed_and_seeds_differ(source, tmp_path):
    orders = []
    for seed in (0, 1):
        assert run(source, tmp_path / str(seed), "--seed", seed) == 0
        orders.append(FaceRecords(tmp_path / str(seed)).labels.tolist())
    assert orders[0] != orders[1]
    assert (np.diff(orders[0]) < 0).sum() > 15


def test_im2rec_with_label_vectors_and_keys_out_of_order(tmp_path):
    records = [(key, pack([i % 3, 0.5], encode(i))) for i, key in enumerate([7, 3, 9, 1, 100, 50])]
    (tmp_path / "in").mkdir()
    with RecordWriter(tmp_path / "in" / "faces.rec") as writer:
        for key, payload in records:
            writer.write(key, payload)
    assert run(tmp_path / "in" / "faces.rec", tmp_path / "out") == 0
    assert sorted(payloads(tmp_path / "out" / "train.rec")) == sorted(payload for _, payload in records)
    assert (tmp_path / "out" / "property").read_text() == "3,112,112\n"


def test_mistakes(source, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "train.rec").write_bytes(b"old")
    for argv, message in (
        ((tmp_path / "none", tmp_path / "out"), "no such file"),
        ((source, source), "holds what is to be read"),
        ((source, tmp_path / "file"), "is a file"),
        ((source, tmp_path / "full"), "holds train.rec already"),
        ((source, tmp_path / "out", "--seed", -1), "--seed must be at least 0, got -1"),
        ((source, tmp_path / "out", "--memory-mb", 0), "--memory-mb must be at least 1, got 0"),
    ):
        assert run(*argv) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("shuffle_rec: error: ")
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "full" / "train.rec").read_bytes() == b"old"


def test_a_damaged_file_leaves_nothing(source, tmp_path, capsys):
    with (source / "train.rec").open("r+b") as file:
        file.seek(int(RecordReader(source / "train.rec").offsets[9]))
        file.write(b"JUNK")
    assert run(source, tmp_path / "out") == 2
    assert "record key 9 at byte" in capsys.readouterr().err
    assert not (tmp_path / "out" / "train.rec").exists()


def test_killed_in_the_middle(tmp_path):
    write_face_records(tmp_path / "in", [[encode(i % 250) + bytes(300_000)] for i in range(300)])
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tools.shuffle_rec", tmp_path / "in", out, "--memory-mb", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob(".train.rec.*.tmp")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == []


@pytest.mark.mxnet
def test_mxnet_reads_it(source, tmp_path):
    assert run(source, tmp_path / "out") == 0
    with mxnet_commands(tmp_path) as mxnet:
        (found,) = mxnet(("faces", (tmp_path / "out" / "train",)))
    assert [key for key, _, _ in found] == list(range(sum(map(len, FACES))))
    expected = [(label, image) for label, images in enumerate(FACES) for image in images]
    assert sorted((label, image) for _, label, image in found) == sorted(expected)


def test_names_of_older_records_do_not_stay(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(source, out) == 0
    assert f"config.rec = {str(out)!r}\n    config.num_classes = 20\n" in capsys.readouterr().out
    assert (out / "classes.json").exists()
    (source / "classes.json").unlink()
    assert run(source, out, "--overwrite") == 0
    assert not (out / "classes.json").exists()


def test_a_folder_with_names_of_something_else_is_kept(source, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "classes.json").write_text("[]")
    assert run(source, tmp_path / "run") == 2
    assert "holds classes.json already" in capsys.readouterr().err
    assert contents(tmp_path / "run") == {"classes.json": b"[]"}


def test_names_that_are_none_are_an_error_before_any_work(source, tmp_path, capsys):
    (source / "classes.json").write_text("{}")
    assert run(source, tmp_path / "out") == 2
    assert "classes.json: expected a list of the classes' names" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
