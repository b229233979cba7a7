"""The loader's benchmark: both sides measured on one file, and what it says where mxnet is missing."""

import json
import sys

import pytest

from benchmarks import bench_data
from benchmarks.mxnet_process import MxnetProcess, find_mxnet_python
from data.records.reader import RecordReader
from data.records.writer import write_face_records
from made_faces import encode

ROWS = ("open_index", "read_one", "read_batch", "decode_batch", "decode_batch_float", "loader_1", "loader_2")
SMALL = ["--quick", "--images", "40", "--batch", "8", "--index-lines", "50", "--rounds", "1"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    write_face_records(folder, [[encode(10 * i + k) for k in range(10)] for i in range(4)])
    return folder


@pytest.fixture
def has_mxnet():
    try:
        find_mxnet_python()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.mxnet
@pytest.mark.usefixtures("has_mxnet")
def test_writes_a_record_for_each_row_and_side(faces, tmp_path, capsys):
    out = tmp_path / "raw" / "data.jsonl"
    assert bench_data.main([*SMALL, "--rec", str(faces), "--out", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["what"], r["method"]) for r in records] == [(w, m) for w in ROWS for m in ("mxnet", "ours")]
    for theirs, ours in zip(records[::2], records[1::2], strict=True):
        unit = "records_per_s" if ours["what"] in ROWS[:3] else "imgs_per_s"
        assert theirs["ratio"] == 1
        assert ours["ratio"] == pytest.approx(ours[unit] / theirs[unit], rel=0.02)
        assert (ours["images"], ours["distinct_images"], ours["batch"]) == (40, 40, 8)
        assert ours["mxnet"] == "1.9.1"
    printed = capsys.readouterr().out
    assert all(row in printed for row in ROWS)


@pytest.mark.mxnet
@pytest.mark.usefixtures("has_mxnet")
def test_a_process_that_ends_is_an_error(faces, tmp_path):
    (tmp_path / "bad.idx").write_text("0\t0\nnot a line")
    with pytest.raises(RuntimeError, match="the mxnet process ended with status 1"):
        MxnetProcess(faces / "train.rec", tmp_path / "bad.idx")


def test_made_up_faces_are_repeated(tmp_path):
    bench_data.make_records(tmp_path, 2, 25)
    reader = RecordReader(tmp_path / "train.rec")
    images = [bytes(reader.read_face(key)[1]) for key in range(1, 26)]
    assert images == [images[i % 2] for i in range(25)]
    assert images[0] != images[1]


def test_long_index(faces, tmp_path):
    reader = RecordReader(faces / "train.rec")
    bench_data.write_long_index(reader, tmp_path / "long.idx", 100)
    assert len(RecordReader(faces / "train.rec", tmp_path / "long.idx")) == 100


def test_where_mxnet_is_missing(faces, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MXNET_PYTHON", str(tmp_path / "python"))
    assert bench_data.main([*SMALL, "--rec", str(faces)]) == 2
    assert "no interpreter with mxnet; run `make mxnet`, or set MXNET_PYTHON" in capsys.readouterr().err
    monkeypatch.setenv("MXNET_PYTHON", sys.executable)  # one without mxnet
    assert bench_data.main([*SMALL, "--rec", str(faces)]) == 2
    assert "`make mxnet` sets up what it needs" in capsys.readouterr().err


def test_the_loader_of_a_recipe(faces, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_data, "WORKERS", (0, 1))
    out = tmp_path / "loader.jsonl"
    recipe = ["--config", "configs/lfw_mini", f"rec={faces}", "batch_size=8", "num_classes=auto", "num_image=None"]
    assert bench_data.main([*recipe, "--quick", "--out", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["workers"], r["config"], r["batches"]) for r in records] == [(0, "lfw_mini", 4), (1, "lfw_mini", 2)]
    assert records[0]["ratio"] == 1
    assert all(r["imgs_per_s"] > 0 for r in records)
    assert "images/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config", "configs/no_such"], "no config"),
        (["--config", "configs/lfw_mini", "rec=nowhere"], "nowhere: no such folder"),
        (["--rec", "nowhere"], "no such file"),
    ],
)
def test_mistakes(argv, message, capsys):
    assert bench_data.main(["--quick", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench_data: error: ")
    assert message in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["lr=3"], "settings belong to --config"),
        (["--batch", "0"], "--batch must be"),
        (["--rounds", "0"], "--rounds"),
    ],
)
def test_bad_arguments(argv, message, capsys):
    with pytest.raises(SystemExit):
        bench_data.main(argv)
    assert message in capsys.readouterr().err
