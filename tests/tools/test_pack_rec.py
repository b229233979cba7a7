import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from data.faces import FaceRecords
from data.records.layout import unpack
from data.records.reader import RecordReader
from face_files import record
from made_faces import contents, encode, make_folder
from mxnet_server import mxnet_commands
from packed_faces import PEOPLE, near, run, values
from paths import ROOT
from utils.decode import decode_rgb

ORDER = [30, 10, 20, 40, 50, 60]  # ann: 1.JPEG, 10.jpg, 2.jpg; bob; eve: a.png, b.jpg
LABELS = [0, 0, 0, 1, 2, 2]


@pytest.fixture
def src(tmp_path):
    return make_folder(tmp_path / "faces", PEOPLE)


class TestFolder:
    def test_everything(self, src, tmp_path, capsys):
        out = tmp_path / "out"
        assert run(src, out, "--workers", 1) == 0
        found, labels = values(out)
        assert near(found, ORDER)
        assert labels == LABELS
        faces = FaceRecords(out)
        assert faces.is_insightface
        assert (out / "property").read_text() == "3,112,112\n"
        assert json.loads((out / "classes.json").read_text()) == ["ann", "bob", "eve"]
        assert sorted(contents(out)) == ["classes.json", "property", "train.idx", "train.rec"]
        printed = capsys.readouterr().out
        assert f"config.rec = {str(out)!r}" in printed
        assert "config.num_classes = 3\n" in printed
        assert "config.num_image = 6\n" in printed
        assert "unreadable" not in printed

    @pytest.mark.parametrize("after_s", [0.0, 5.0])
    def test_a_rate_is_said_only_of_some_seconds(self, src, tmp_path, capsys, monkeypatch, after_s):
        monkeypatch.setattr("tools.pack_rec._RATE_S", after_s)
        assert run(src, tmp_path / "out", "--workers", 1) == 0
        assert (" a second" in capsys.readouterr().out) == (after_s == 0)

    def test_any_number_of_workers_gives_the_same_bytes(self, tmp_path):
        people = {f"p{i:02d}": {f"{k}.jpg": encode(i + 3 * k) for k in range(5)} for i in range(30)}
        people["p07"]["broken.jpg"] = b"broken"
        src = make_folder(tmp_path / "faces", people)
        for workers in (1, 2, 3):
            assert run(src, tmp_path / f"out{workers}", "--workers", workers) == 0
        assert contents(tmp_path / "out1") == contents(tmp_path / "out2") == contents(tmp_path / "out3")
        assert len(FaceRecords(tmp_path / "out1")) == 150

    def test_copy_keeps_bytes_and_the_default_codes_anew(self, src, tmp_path):
        assert run(src, tmp_path / "copied", "--copy", "--workers", 1) == 0
        assert run(src, tmp_path / "coded", "--encoding", ".png", "--workers", 1) == 0
        copied, coded = (RecordReader(tmp_path / name / "train.rec") for name in ("copied", "coded"))
        originals = [
            PEOPLE["ann"]["1.JPEG"], PEOPLE["ann"]["10.jpg"], PEOPLE["ann"]["2.jpg"], PEOPLE["bob"]["only.jpg"],
            PEOPLE["eve"]["a.png"], PEOPLE["eve"]["b.jpg"],
        ]  # fmt: skip
        for key, original in enumerate(originals, 1):
            assert bytes(unpack(record(copied, key))[1]) == original
            encoded = bytes(unpack(record(coded, key))[1])
            assert encoded.startswith(b"\x89PNG")
            assert (decode_rgb(encoded) == decode_rgb(original)).all()

    def test_quality(self, src, tmp_path):
        for quality in (50, 95):
            assert run(src, tmp_path / str(quality), "--quality", quality, "--workers", 1) == 0
        sizes = [(tmp_path / name / "train.rec").stat().st_size for name in ("50", "95")]
        assert sizes[0] < sizes[1]

    def test_other_sizes_are_resized_and_said(self, tmp_path, capsys):
        src = make_folder(
            tmp_path / "faces",
            {"a": {"1.jpg": encode(9, (250, 250)), "2.jpg": encode(9, (60, 80)), "3.jpg": encode(9)}},
        )
        assert run(src, tmp_path / "out", "--copy", "--workers", 1) == 0
        assert values(tmp_path / "out")[1] == [0, 0, 0]
        assert "2 images had another size and were resized, 1 of them not square" in capsys.readouterr().out
        assert run(src, tmp_path / "small", "--size", 64, "--workers", 1) == 0
        assert (tmp_path / "small" / "property").read_text() == "1,64,64\n"
        assert FaceRecords(tmp_path / "small", (64, 64)).load(0)[0].shape == (64, 64, 3)

    def test_what_decoding_changes_is_said(self, tmp_path, capsys):
        deep = cv2.imencode(".png", np.full((112, 112), 4000, np.uint16))[1].tobytes()
        clear = cv2.imencode(".png", np.full((112, 112, 4), 90, np.uint8))[1].tobytes()
        src = make_folder(
            tmp_path / "faces", {"a": {"1.png": deep, "2.png": deep, "3.png": clear, "4.jpg": encode(9)}}
        )
        assert run(src, tmp_path / "out", "--copy", "--workers", 1) == 0
        printed = capsys.readouterr().out
        assert "2 images with more than 8 bits, scaled to 8 by the image's own range" in printed
        assert "1 images with transparency, which is left out" in printed

    def test_colour_order(self, tmp_path):
        red = np.zeros((112, 112, 3), np.uint8)
        red[..., 2] = 255  # OpenCV writes BGR
        src = make_folder(tmp_path / "faces", {"a": {"red.png": cv2.imencode(".png", red)[1].tobytes()}})
        assert run(src, tmp_path / "out", "--workers", 1) == 0
        image, _ = FaceRecords(tmp_path / "out").load(0)
        assert image[50, 50, 0] > 250
        assert image[50, 50, 1:].max() < 5

    @pytest.mark.skipif(sys.platform == "win32", reason="such names are no names there")
    def test_names_beyond_ascii(self, tmp_path):
        src = make_folder(tmp_path / "faces", {"žaneta": {"ü 1.jpg": encode(9)}, "李": {"a\tb.jpg": encode(8)}})
        (src / "žaneta" / os.fsdecode(b"\xff.jpg")).write_bytes(encode(7))
        (src / "žaneta" / os.fsdecode(b"\xfe.jpg")).write_bytes(b"broken")
        assert run(src, tmp_path / "out", "--workers", 2) == 0
        assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["žaneta", "李"]
        assert values(tmp_path / "out")[1] == [0, 0, 1]
        assert b"\xfe.jpg\tnot a decodable image" in (tmp_path / "out" / "unreadable.txt").read_bytes()


class TestUnreadable:
    @pytest.fixture
    def src(self, tmp_path):
        people = {
            "a": {"1.jpg": encode(10), "2.jpg": b"no image", "3.jpg": b""},
            "b_empty": {},
            "c_broken": {"1.jpg": encode(20)[:400]},
            "d": {"1.jpg": encode(30)},
        }
        src = make_folder(tmp_path / "faces", people)
        (src / "d" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
        return src

    @pytest.mark.parametrize("extra", [[], ["--shuffle", 1]])
    def test_left_out_listed_and_labels_without_a_gap(self, src, tmp_path, capsys, extra):
        out = tmp_path / "out"
        assert run(src, out, "--workers", 2, *extra) == 0
        found, labels = values(out)
        assert near(sorted(found), [10, 30])
        assert sorted(labels) == [0, 1]
        assert json.loads((out / "classes.json").read_text()) == ["a", "d"]
        lines = (out / "unreadable.txt").read_text().splitlines()
        assert [line.split("\t")[0] for line in lines] == [
            str(src / "a" / "2.jpg"), str(src / "a" / "3.jpg"), str(src / "c_broken" / "1.jpg"),
            str(src / "d" / "gone.jpg"), "b_empty", "c_broken",
        ]  # fmt: skip
        assert "No such file" in lines[3]
        printed = capsys.readouterr().out
        assert "4 files are unreadable and left out" in printed
        assert f"{src / 'a' / '2.jpg'}: not a decodable image: 8 bytes" in printed
        assert "2 identities have no readable image and no label: b_empty, c_broken" in printed
        assert "config.num_classes = 2\n" in printed

    def test_nothing_readable(self, tmp_path, capsys):
        src = make_folder(tmp_path / "faces", {"a": {"1.jpg": b"x"}, "b": {}})
        assert run(src, tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert error.startswith("pack_rec: error: none of 1 files could be read as an image; the first: ")
        assert contents(tmp_path / "out") == {}
        (src / "a" / "1.jpg").unlink()
        assert run(src, tmp_path / "out") == 2
        assert capsys.readouterr().err.startswith("pack_rec: error: no image in any of 2 identity folders (.jpg")

    def test_shuffled_over_an_older_list(self, tmp_path):
        src = make_folder(tmp_path / "faces", {"a": {"1.png": encode(1), "2.png": b"x"}, "b": {"1.png": encode(2)}})
        assert run(src, tmp_path / "out", "--shuffle", 0) == 0
        assert (tmp_path / "out" / "unreadable.txt").exists()
        (src / "a" / "2.png").unlink()
        assert run(src, tmp_path / "out", "--shuffle", 0, "--overwrite") == 0
        assert not (tmp_path / "out" / "unreadable.txt").exists()


class TestShuffle:
    def test_mixed_and_the_same_for_a_seed(self, tmp_path):
        src = make_folder(
            tmp_path / "faces", {f"p{i:02d}": {"1.jpg": encode(i), "2.jpg": encode(i)} for i in range(20)}
        )
        for name, seed in (("a", 3), ("b", 3), ("c", 4)):
            assert run(src, tmp_path / name, "--shuffle", seed, "--workers", 1, "--copy") == 0
        assert contents(tmp_path / "a") == contents(tmp_path / "b")
        assert (tmp_path / "a" / "train.rec").read_bytes() != (tmp_path / "c" / "train.rec").read_bytes()
        faces = FaceRecords(tmp_path / "a")
        assert not faces.is_insightface
        labels = faces.labels
        assert sorted(labels.tolist()) == sorted([*range(20), *range(20)])
        assert (np.diff(labels) < 0).sum() > 8
        assert (tmp_path / "a" / "property").read_text() == "20,112,112\n"


class TestMistakes:
    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            (["--size", "0"], "--size must be 1 to 4096, got 0"),
            (["--quality", "101"], "--quality must be 1 to 100, got 101"),
            (["--workers", "0"], "--workers must be 1 to 1024, got 0"),
            (["--shuffle", "-1"], "--shuffle must be at least 0, got -1"),
            (["--list", "nowhere.lst"], "nowhere.lst: no such list"),
        ],
    )
    def test_options(self, src, tmp_path, capsys, extra, message):
        assert run(src, tmp_path / "out", *extra) == 2
        assert capsys.readouterr().err.startswith(f"pack_rec: error: {message}")
        assert not (tmp_path / "out").exists()

    def test_folders(self, src, tmp_path, capsys):
        (tmp_path / "file").write_text("x")
        (tmp_path / "flat").mkdir()
        (tmp_path / "flat" / "1.jpg").write_bytes(encode(1))
        for argv, message in (
            ((tmp_path / "none", tmp_path / "out"), "no such folder"),
            ((tmp_path / "flat", tmp_path / "out"), "found 1 images and no folder"),
            ((src, tmp_path / "file"), "is a file"),
            ((src, src / "out"), "choose a folder outside"),
            ((src, src), "choose a folder outside"),
        ):
            assert run(*argv) == 2
            error = capsys.readouterr().err
            assert message in error
            assert error.count("\n") == 1
        assert sorted(p.name for p in tmp_path.iterdir()) == ["faces", "file", "flat"]

    def test_existing_records_stay_unless_overwritten(self, src, tmp_path, capsys):
        out = tmp_path / "out"
        assert run(src, out, "--workers", 1) == 0
        before = contents(out)
        assert run(src, out, "--workers", 1, "--quality", 30) == 2
        assert "holds train.rec, train.idx, property, classes.json already" in capsys.readouterr().err
        assert contents(out) == before
        assert run(src, out, "--workers", 1, "--quality", 30, "--overwrite") == 0
        assert contents(out) != before


# What runs behind a shell's & inherits that SIGINT is ignored; the tool would, rightly, go on.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from tools.pack_rec import main
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_leaves_no_half_file_and_no_process(tmp_path, sign):
    people = {f"p{i:03d}": {f"{k}.jpg": encode(i % 250) for k in range(8)} for i in range(150)}
    src, out = make_folder(tmp_path / "faces", people), tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, src, out, "--workers", "2", "--size", "1500"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size > 0 for p in out.glob(".train.rec.*.tmp")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, sign) if sign == signal.SIGINT else process.send_signal(sign)
    _, said = process.communicate(timeout=30)
    assert process.returncode == (130 if sign == signal.SIGINT else -sign)
    if sign == signal.SIGINT:
        assert said == "pack_rec: interrupted, nothing is written\n"
    assert [p.name for p in out.iterdir() if not p.name.startswith(".")] == []
    while True:  # its workers end too
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.mxnet
def test_mxnet_reads_what_was_packed(src, tmp_path):
    assert run(src, tmp_path / "out", "--copy", "--workers", 1) == 0
    assert run(src, tmp_path / "mixed", "--copy", "--workers", 1, "--shuffle", 0) == 0
    expected = {
        (label, PEOPLE[name][file]) for label, name in enumerate(("ann", "bob", "eve")) for file in PEOPLE[name]
    }
    expected = {(label, data) for label, data in expected if data != b"no image"}
    with mxnet_commands(tmp_path) as mxnet:
        packed, mixed = mxnet(("faces", (tmp_path / "out" / "train",)), ("faces", (tmp_path / "mixed" / "train",)))
    assert [key for key, _, _ in packed] == list(range(1, 7))
    assert [label for _, label, _ in packed] == LABELS
    assert {(label, data) for _, label, data in packed} == {(label, data) for _, label, data in mixed} == expected
