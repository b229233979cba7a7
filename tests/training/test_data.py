"""The data of a run, through train.py: several sets, damaged images, waiting for data, what the log says."""

import json
import re
import time

import cv2
import numpy as np
import pytest
import torch

import train
from data.faces import Batch, FaceRecords, SyntheticFaces
from data.records.layout import pack
from data.records.writer import write_face_records
from dataset import get_dataloader
from face_files import face, make_image_folder, write
from ranks import run_ranks
from tiny_runs import TINY
from training import data as run_data
from training import report
from training.run import TrainingRun
from utils.config import get_config
from utils.distributed import Ranks
from utils.log import init_logging


def records(folder, identities=8, each=4, junk=()):
    """Insightface's form; the image of each key in ``junk`` is none."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = [
        cv2.imencode(".png", rng.integers(0, 255, (112, 112, 3), np.uint8))[1].tobytes()
        for _ in range(identities * each)
    ]
    for key in junk:
        images[key - 1] = b"no image"
    write_face_records(folder, [images[i * each : (i + 1) * each] for i in range(identities)])
    return folder


def run(output, *overrides):
    train.main([TINY, f"output={output}", "num_classes=auto", "num_image=None", *overrides])
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return (output / "training.log").read_text(), lines


def refused(capsys, *overrides):
    with pytest.raises(SystemExit) as exit_:
        train.main([TINY, "num_classes=auto", "num_image=None", *overrides])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_an_image_folder_needs_no_conversion(tmp_path):
    faces = make_image_folder(tmp_path / "faces")
    log, lines = run(tmp_path / "run", f"rec={faces}", "batch_size=2", "num_workers=1")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert f"data: 6 images of 3 identities from {faces}" in log
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["a", "b", "c"]


def test_several_sets(tmp_path):
    folder, recs = make_image_folder(tmp_path / "faces"), records(tmp_path / "recs")
    (tmp_path / "people.json").write_text(json.dumps([{"faces": "b", "recs": 2}]))
    (recs / "mine.bin").write_bytes(b"not a pickle")
    sets = [f"rec=[{folder},{recs}]", "rec_weights=2,0.5", f"class_map={tmp_path / 'people.json'}"]
    log, lines = run(tmp_path / "run", *sets, "batch_size=4", "val_targets=mine")
    assert "38 images of 10 identities" in log
    assert "set 0 (faces): 6 images, classes 0 to 2, weight 2: 12 images an epoch" in log
    assert "set 1 (recs): 32 images, classes 3 to 9, 1 of earlier sets, weight 0.5: 16 images an epoch" in log
    assert len(lines) == (12 + 16) // 4
    assert re.search(r"verification set .*recs/mine\.bin is left out", log), "found in the second set's folder"
    classes = json.loads((tmp_path / "run" / "classes.json").read_text())
    assert classes["names"] == ["faces/a", "faces/b", "faces/c", *[None] * 7]
    assert classes["sets"][1] == {"name": "recs", "images": 32, "first_class": 3, "classes": 7, "shared_classes": 1}


def test_several_sets_that_do_not_fit(tmp_path, capsys):
    folder, recs = make_image_folder(tmp_path / "faces"), records(tmp_path / "recs")
    both, output = f"rec=[{folder},{recs}]", f"output={tmp_path / 'run'}"
    assert "rec_weights needs one number for each set of rec, 2, got (1.0,)" in refused(
        capsys, both, output, "rec_weights=[1]"
    )
    assert "labels run from 0 to 10, but num_classes = 5" in refused(capsys, both, output, "num_classes=5")
    assert "no such folder" in refused(capsys, f"rec=[{folder},{tmp_path / 'nowhere'}]", output)
    assert "people.json: no such file" in refused(capsys, both, output, f"class_map={tmp_path / 'people.json'}")


def first_labels(rank, world_size, overrides):
    cfg = get_config(TINY, overrides)
    data, cfg = run_data.open_data(cfg, Ranks(rank, world_size, rank, torch.device("cpu")))
    faces = data.faces
    scanned = [one for one in faces.sets if "labels" in vars(one)]
    batch = next(data.batches(0))
    counts = len(scanned), cfg.num_classes, faces.unusable.tolist()
    return *counts, batch.labels_B.tolist(), batch.sample_ids_B.tolist()


@pytest.mark.distributed
def test_one_rank_of_a_host_scans_for_all(tmp_path):
    sets = [records(tmp_path / "a"), records(tmp_path / "b")]
    damage = FaceRecords(sets[1])
    at = int(damage.reader.offsets[3])
    with (sets[1] / "train.rec").open("r+b") as file:
        file.seek(at + 12)
        file.write(np.float32(0.5).tobytes())
    options = [f"rec=[{sets[0]},{sets[1]}]", "num_classes=auto", "on_bad_sample=skip", "batch_size=16"]
    results = run_ranks(first_labels, 2, options)
    assert [scanned for scanned, *_ in results] == [2, 0]
    labels = np.repeat(np.arange(16), 4)
    for _, classes, unusable, labels_B, ids_B in results:
        assert (classes, unusable) == (16, [32 + 2])
        assert labels[ids_B].tolist() == labels_B


class TestDamaged:
    def test_training_goes_on_and_counts(self, tmp_path):
        recs = records(tmp_path / "recs", junk=(6, 20))
        log, lines = run(tmp_path / "run", f"rec={recs}", "on_bad_sample=skip", "batch_size=4", "num_epoch=4")
        assert len(lines) == 4 * 8
        skipped = [line["skipped_images"] for line in lines]
        assert skipped[-1] == 8, "two in each of four epochs"
        assert skipped == sorted(skipped)
        found = re.findall(
            r"skipped damaged image (\d+) of \d+ so far: .*record key (6|20) at byte \d+: not a dec", log
        )
        assert [int(number) for number, _ in found] == [1, 2, 4, 8], "said ever more seldom"

    def test_workers_report(self, tmp_path):
        recs = records(tmp_path / "recs", junk=(6,))
        _, lines = run(tmp_path / "run", f"rec={recs}", "on_bad_sample=skip", "batch_size=4", "num_workers=2")
        assert lines[-1]["skipped_images"] == 1

    def test_the_default_stops_with_the_record_named(self, tmp_path):
        recs = records(tmp_path / "recs", junk=(6,))
        with pytest.raises(
            ValueError, match=r"record key 6 at byte \d+: not a decodable .* on_bad_sample = \"skip\""
        ):
            run(tmp_path / "run", f"rec={recs}", "batch_size=4")

    def test_damaged_labels_are_left_out(self, tmp_path):
        recs = tmp_path / "recs"
        recs.mkdir()
        images = [(key, pack(key % 3, face(key), key)) for key in range(12)]
        images[4] = (4, pack(2.5, face(4)))
        images[7] = (7, pack(9, face(7)))
        write(recs, images)
        log, lines = run(tmp_path / "run", f"rec={recs}", "on_bad_sample=skip", "num_classes=3", "batch_size=4")
        assert "2 of 12 images have a damaged label and are left out" in log
        assert lines[-1]["skipped_images"] == 2

    def test_a_label_out_of_range_is_named(self, tmp_path, capsys):
        (tmp_path / "recs").mkdir()
        write(tmp_path / "recs", [(key, pack(9 if key == 3 else 0, face(key))) for key in range(8)])
        error = refused(capsys, f"rec={tmp_path / 'recs'}", f"output={tmp_path / 'run'}", "num_classes=3")
        assert re.search(r"labels run from 0 to 9, .*the first is that of .*record key 3 at byte \d+", error)

    def test_an_index_that_is_cut_short(self, tmp_path, capsys):
        recs = records(tmp_path / "recs")
        index = (recs / "train.idx").read_text().splitlines(keepends=True)
        (recs / "train.idx").write_text("".join(index[:20]))
        options = [f"rec={recs}", "batch_size=4"]
        assert "does not list the record at byte" in refused(capsys, *options, f"output={tmp_path / 'run'}")
        log, _ = run(tmp_path / "run", *options, "on_bad_sample=skip")
        assert "data: 19 images" in log
        assert "does not list the record at byte" in log

    def test_too_many_at_the_start(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(run_data, "MAX_DAMAGED_FROM", 30)
        recs = tmp_path / "recs"
        recs.mkdir()
        write(recs, [(key, pack(0.5 if key == 4 else 0, face(key))) for key in range(40)])
        options = [f"rec={recs}", f"output={tmp_path / 'run'}", "on_bad_sample=skip"]
        assert re.search(r"1 of 40 images are damaged, more than 1 % .*record key 4", refused(capsys, *options))

    def test_too_many_on_the_way(self):
        counter = run_data.DamagedSamples()
        labels = torch.zeros(100, dtype=torch.int64)
        sound, damaged = Batch(labels, labels, labels), Batch(labels, labels, labels, ["a.jpg: damaged"] * 4)
        for batch in [damaged, damaged, *[sound] * 7]:  # more than 1 %, but of few images
            counter.count(batch)
        with pytest.raises(ValueError, match=r"12 of 1000 images are damaged, more than 1 % \(the last: a\.jpg"):
            counter.count(damaged)

    def test_hopeless(self, tmp_path):
        write(tmp_path, [(key, pack(0, b"junk")) for key in range(50)])
        faces = FaceRecords(tmp_path, on_bad_sample="skip")
        with pytest.raises(ValueError, match=r"100 samples in a row are damaged; the last: .*record key \d+ at byte"):
            faces[0]


class TestWaiting:
    def test_a_slow_loader_is_pointed_out_once(self, tmp_path, monkeypatch):
        load = SyntheticFaces.load

        def slow(self, index):
            time.sleep(0.05)
            return load(self, index)

        monkeypatch.setattr(SyntheticFaces, "load", slow)
        train.main([TINY, f"output={tmp_path}", "num_image=48"])
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert all(line["data_wait_share"] > 0.2 for line in lines[:-1])
        log = (tmp_path / "training.log").read_text()
        assert len(re.findall(r"waits for data \d+ % of the time: raise num_workers \(0\)", log)) == 1
        assert re.search(r"Waiting: \d\d+ %", log)

    def test_a_fast_one_is_not(self, tmp_path, monkeypatch):
        save_if_due = TrainingRun.save_if_due

        def save_slowly(self):
            time.sleep(0.1)  # a step long enough that a moment's wait is no share of it
            save_if_due(self)

        monkeypatch.setattr(TrainingRun, "save_if_due", save_slowly)
        train.main([TINY, f"output={tmp_path}"])
        assert "waits for data" not in (tmp_path / "training.log").read_text()

    @pytest.mark.parametrize(
        ("source", "ways"),
        [("folder", ["pack_rec", "dali"]), ("records", ["dali"]), ("synthetic", [])],
    )
    def test_what_helps_depends_on_the_data(self, tmp_path, source, ways):
        if source == "folder":
            loader = get_dataloader(make_image_folder(tmp_path / "faces"), 2, num_workers=0)
        elif source == "records":
            loader = get_dataloader(records(tmp_path / "recs"), 2, num_workers=0)
        else:
            loader = get_dataloader("synthetic", 2, num_classes=3, num_image=8, num_workers=0)
        text = report.WaitingHint(get_config(TINY), loader.dataset).ways
        assert [way for way in ("pack_rec", "dali") if way in text] == ways
        assert "num_workers (0)" in text

    def test_at_most_every_hundred_lines(self, tmp_path, capsys):
        init_logging(is_main=True)
        loader = get_dataloader("synthetic", 2, num_classes=3, num_image=8, num_workers=0)
        hint = report.WaitingHint(get_config(TINY), loader.dataset)
        for share in [0.9] * 101 + [0.1] * 50 + [0.21] * 60:
            hint.check(share)
        said = re.findall(r"waits for data (\d+) %", capsys.readouterr().out)
        assert said == ["90", "21", "21"][: len(said)]
        assert len(said) == 2


def test_chunks_come_as_a_whole(tmp_path):
    """With shuffle_chunk, an epoch is still each image once, in few stretches of the file at a time."""
    write(tmp_path, [(key, pack(0, face(key % 256))) for key in range(1024)])
    loader = get_dataloader(tmp_path, 32, num_workers=0, shuffle_chunk=4)
    assert loader.dataset.reader.chunk == 4
    batches = [batch.sample_ids_B for batch in loader]
    assert sorted(torch.cat(batches).tolist()) == list(range(1024))
    first = torch.cat(batches[:8])  # one window of 64 chunks of 4
    assert len(set((first // 4).tolist())) == 64
    again = get_dataloader(tmp_path, 16, rank=1, world_size=2, num_workers=0, shuffle_chunk=4)
    assert torch.equal(next(iter(again)).sample_ids_B, batches[0][16:])
