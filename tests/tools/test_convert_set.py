import hashlib

import numpy as np
import pytest

from data.records.writer import write_face_records
from dataset import get_dataloader, open_faces
from face_files import FACES, LABELS, VALUES, contents, make_image_folder
from tar_files import write_shards
from tiny_runs import run, weights
from tools.convert_set import main


@pytest.fixture
def records(tmp_path):
    write_face_records(tmp_path / "rec", FACES)
    return tmp_path / "rec"


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("train*")}


def test_records_to_shards_and_back_give_the_same_batches(records, tmp_path, capsys):
    assert main([str(records), str(tmp_path / "tar"), "--shard-size", "1"]) == 0
    assert "6 images of 3 classes as 1 shard in " in capsys.readouterr().out
    assert main([str(tmp_path / "tar"), str(tmp_path / "back"), "--to", "records"]) == 0
    loaders = [get_dataloader(source, 2, num_workers=0) for source in (records, tmp_path / "tar", tmp_path / "back")]
    for batches in zip(*loaders, strict=True):
        first = batches[0]
        for other in batches[1:]:
            assert all(np.array_equal(a, b) for a, b in zip(first[:3], other[:3], strict=True))
    assert (tmp_path / "back" / "property").read_text() == "3,112,112\n"


def test_training_from_shards_gives_the_losses_of_records_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(0)
    import cv2

    faces = [
        [cv2.imencode(".jpg", rng.integers(0, 255, (112, 112, 3), np.uint8))[1].tobytes()] * 2 for _ in range(16)
    ]
    write_face_records(tmp_path / "rec", faces)
    assert main([str(tmp_path / "rec"), str(tmp_path / "tar")]) == 0
    rest = ("num_classes=auto", "num_image=None", "num_epoch=1")
    losses = [run(tmp_path / f"out_{form}", f"rec={tmp_path / form}", *rest) for form in ("rec", "tar")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    first, second = weights(tmp_path / "out_rec"), weights(tmp_path / "out_tar")
    assert all(bool((first[name] == second[name]).all()) for name in first)


def test_shards_have_the_size_asked_for_and_the_same_bytes_each_time(tmp_path):
    folder = make_image_folder(tmp_path / "faces")
    from data.shards.writer import ShardWriter

    for name in ("a", "b"):
        with ShardWriter(tmp_path / name, 7000) as writer:
            for image, label in zip([i for p in FACES for i in p], LABELS, strict=True):
                writer.add(label, image)
    assert 1 < writer.shards < 6
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert all(path.stat().st_size <= 7000 for path in (tmp_path / "a").glob("*.tar"))
    assert contents(open_faces(tmp_path / "a")) == (VALUES, LABELS)
    assert main([str(folder), str(tmp_path / "c")]) == 0
    assert open_faces(tmp_path / "c").class_names() == ["a", "b", "c"]


def test_several_sets_become_one_and_are_mixed_by_a_seed(records, tmp_path):
    tars = write_shards(tmp_path / "tars", ["x", "y", "z"])
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main([str(records), f"{tars}/train-*.tar", str(tmp_path / name), "--shuffle", seed]) == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != digests(tmp_path / "c")
    values, labels = contents(open_faces(tmp_path / "a"))
    expected = list(zip(VALUES * 2, LABELS + [label + 3 for label in LABELS], strict=True))
    assert sorted(zip(values, labels, strict=True)) == sorted(expected)
    assert open_faces(tmp_path / "a").class_names() == [None, None, None, "tars/x", "tars/y", "tars/z"]


def test_what_is_there_is_not_lost(records, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(records), str(out)]) == 0
    assert main([str(records), str(out)]) == 2
    assert "train-000000.tar already: choose another folder, or --overwrite" in capsys.readouterr().err
    (out / "train-000007.tar").write_bytes(b"of a larger set")
    assert main([str(records), str(out), "--overwrite"]) == 0
    assert [path.name for path in out.glob("*.tar")] == ["train-000000.tar"]
    assert main([str(out), str(out)]) == 2
    assert main([str(records), str(out), "--to", "records", "--overwrite"]) == 2
    (out / "mine.tar").touch()
    assert main([str(records), str(out), "--overwrite"]) == 2
    assert "holds mine.tar already: choose another folder\n" in capsys.readouterr().err


def test_nothing_is_left_when_an_image_cannot_be_written(tmp_path, capsys):
    write_face_records(tmp_path / "rec", [[b"no image at all"]])
    assert main([str(tmp_path / "rec"), str(tmp_path / "out")]) == 2
    assert "record key 1 at byte 40: it is no JPEG" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
    assert main([str(tmp_path / "rec"), str(tmp_path / "out"), "--to", "records"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--shard-size", "0"], "--shard-size is in MB"), (["--shuffle", "-1"], "--shuffle takes a seed")],
)
def test_bad_options_say_what_is_expected(records, tmp_path, capsys, arguments, message):
    assert main([str(records), str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
