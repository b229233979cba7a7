"""A snapshot holds the heads as they were, whatever training does to them while it is written."""

import threading
import time

import numpy as np
import pytest
import torch

from heads import checkpoint, snapshot
from heads.checkpoint import HeadSaver
from heads.optim import RowSGD
from heads.saved import open_heads
from heads.snapshot import Snapshot
from losses import ArcFace
from partial_fc_mhs import PartialFCMHS
from saved_heads import load
from utils.manifest import DamagedError

C, L, D = 1_000, 3, 8  # the last head has one class
PLACES = ("device", "host", "file")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(snapshot, "BLOCK_BYTES", 5 * L * D * 4)
    monkeypatch.setattr(checkpoint, "BLOCK_BYTES", 9 * L * D * 4)


def make(place, folder):
    classifier = PartialFCMHS(ArcFace(), D, C, head_size=L, seed=1, head_storage=place, head_folder=folder / "files")
    RowSGD(classifier.shard, 0.1, momentum=0.9)
    return classifier.shard


def update(shard, heads_h, value):
    shard.storage.store(
        heads_h, {n: torch.full((len(shard.layout.classes_of(heads_h)), D), value) for n in shard.storage.names}
    )


def rows_of(shard):
    return shard.centres(torch.arange(C)).clone()


@pytest.mark.parametrize("place", PLACES)
def test_what_is_written_while_training_overwrites_it_is_what_was(tmp_path, place):
    shard = make(place, tmp_path)
    heads = shard.layout.num_heads
    update(shard, torch.arange(heads), 1.0)
    save = HeadSaver(shard).begin(True)
    expected = rows_of(shard)
    started, stop = threading.Event(), threading.Event()

    def keep_updating():
        generator = torch.Generator().manual_seed(0)
        while not stop.is_set():
            heads_h = torch.randperm(heads, generator=generator)[:40].sort().values
            update(shard, heads_h, float(torch.rand((), generator=generator)))
            started.set()

    updating = threading.Thread(target=keep_updating)
    updating.start()
    started.wait()
    save.write(tmp_path / "heads")
    stop.set()
    updating.join()
    save.close()
    copy = make("device", tmp_path)
    load(copy, tmp_path / "heads")
    assert torch.equal(rows_of(copy), expected)
    assert (copy.visits == 1).all()
    assert not torch.equal(rows_of(shard), expected)


@pytest.mark.parametrize("place", PLACES)
def test_all_is_overwritten_before_anything_is_written(tmp_path, place):
    shard = make(place, tmp_path)
    update(shard, torch.arange(0, shard.layout.num_heads, 2), 1.0)
    save = HeadSaver(shard).begin(True)
    expected = rows_of(shard)
    for value in (2.0, 3.0):
        update(shard, torch.arange(shard.layout.num_heads), value)
    shard.storage.flush()
    save.write(tmp_path / "heads")
    copy = make("device", tmp_path)
    load(copy, tmp_path / "heads")
    assert torch.equal(rows_of(copy), expected)
    assert shard.storage.before_write is None


def test_layers_hold_what_has_changed_and_each_checkpoint_stands_alone(tmp_path):
    shard, saver, states = make("device", tmp_path), None, []
    saver = HeadSaver(shard, full_every=3)
    sizes = []
    for number in range(5):
        changed = torch.arange(shard.layout.num_heads) if number == 0 else torch.arange(number, 300, 20)
        update(shard, changed, float(number + 1))
        save = saver.begin(saver.wants_all())
        folder = tmp_path / f"step_{number}" / "heads"
        part = save.write(folder)
        saver.finish(part, folder)
        states.append((rows_of(shard), shard.visits.clone()))
        mine = folder / "rank_0_of_1"
        sizes.append({layer.name: len(np.load(layer / "heads.npy")) for layer in sorted(mine.iterdir())})
    full = shard.layout.num_heads
    assert sizes == [
        {"layer_0": full},
        {"layer_0": full, "layer_1": 15},
        {"layer_0": full, "layer_1": 15, "layer_2": 15},
        {"layer_0": full},
        {"layer_0": full, "layer_1": 15},
    ]
    first, second = (tmp_path / f"step_{n}" / "heads" / "rank_0_of_1" / "layer_0" / "weight.npy" for n in (0, 2))
    assert first.stat().st_ino == second.stat().st_ino
    for number, (rows, visits) in enumerate(states):
        copy = make("host", tmp_path)
        load(copy, tmp_path / f"step_{number}" / "heads")
        assert torch.equal(rows_of(copy), rows)
        assert torch.equal(copy.visits, visits)
        found, updates = open_heads(tmp_path / f"step_{number}" / "heads", shard.settings(), None).centres(
            np.arange(C)
        )
        assert np.array_equal(found, rows)
        assert np.array_equal(updates, visits.repeat_interleave(L)[:C])


def saved_layers(tmp_path, changed, first=None):
    shard = make("device", tmp_path)
    saver = HeadSaver(shard, full_every=9)
    for number, heads_h in enumerate((first if first is not None else torch.arange(334), changed)):
        update(shard, heads_h, float(number))
        part = saver.begin(saver.wants_all()).write(tmp_path / str(number))
        saver.finish(part, tmp_path / str(number))
    return sorted(path.name for path in (tmp_path / "1" / "rank_0_of_1").iterdir())


def test_where_most_heads_have_changed_all_are_written_anew(tmp_path):
    assert saved_layers(tmp_path, torch.arange(200)) == ["layer_0"]


def test_without_the_checkpoint_before_all_are_written_anew(tmp_path):
    shard = make("device", tmp_path)
    saver = HeadSaver(shard, full_every=9)
    update(shard, torch.arange(334), 1.0)
    saver.finish(saver.begin(saver.wants_all()).write(tmp_path / "a"), tmp_path / "gone")
    update(shard, torch.arange(3), 2.0)
    part = saver.begin(saver.wants_all()).write(tmp_path / "b")
    assert {name.split("/")[1] for name in part.sums} == {"layer_0"}


def test_a_save_that_failed_is_made_good_by_the_next(tmp_path):
    shard = make("device", tmp_path)
    saver = HeadSaver(shard, full_every=9)
    update(shard, torch.arange(334), 1.0)
    saver.finish(saver.begin(saver.wants_all()).write(tmp_path / "a"), tmp_path / "a")
    update(shard, torch.arange(5), 2.0)
    saver.begin(saver.wants_all()).close()  # never written
    update(shard, torch.arange(5, 7), 3.0)
    part = saver.begin(saver.wants_all()).write(tmp_path / "c")
    saver.finish(part, tmp_path / "c")
    copy = make("device", tmp_path)
    load(copy, tmp_path / "c")
    assert torch.equal(rows_of(copy), rows_of(shard))


def test_where_there_are_no_links_files_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    assert saved_layers(tmp_path, torch.arange(5)) == ["layer_0", "layer_1"]
    copy = make("device", tmp_path)
    load(copy, tmp_path / "1")
    assert (rows_of(copy)[:15] == 1).all()


def test_rows_that_are_not_finite_are_not_written_over_sound_ones(tmp_path):
    shard = make("device", tmp_path)
    update(shard, torch.arange(9), float("nan"))
    with pytest.raises(FloatingPointError, match="class centres are not finite"):
        HeadSaver(shard).begin(True).write(tmp_path / "heads")


def test_giving_up_ends_the_writing(tmp_path):
    shard = make("device", tmp_path)
    update(shard, torch.arange(334), 1.0)
    taken = Snapshot(shard.storage, torch.ones(334, dtype=torch.bool))
    taken.close()
    with pytest.raises(OSError, match="given up"):
        taken.write(tmp_path / "layer")


def test_training_waits_for_a_block_and_not_for_the_whole(tmp_path):
    """While a save is held up between two blocks, updates go on."""
    shard = make("device", tmp_path)
    update(shard, torch.arange(334), 1.0)
    save = HeadSaver(shard).begin(True)
    blocks = save.snapshot._blocks()
    next(blocks)
    started_s = time.monotonic()
    for _ in range(20):
        update(shard, torch.arange(334), 2.0)
    assert time.monotonic() - started_s < 5
    assert (next(blocks)["weight"] == 1).all()
    save.close()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("heads", np.array([3, 3]), "expected ascending numbers of heads from 0 to 333"),
        ("heads", np.array([3, 1 << 40]), "expected ascending numbers of heads"),
        ("heads", np.array([-1, 3]), "expected ascending numbers of heads"),
        ("visits", np.array([0, 1], np.int32), "expected a count for each of 2 heads"),
        ("visits", np.array([1, 1, 1], np.int32), "expected a count for each of 2 heads"),
        ("weight", np.zeros((5, D), np.float32), "expected 6 rows of 8 numbers, found float32 of shape"),
        ("weight", np.zeros((6, D), np.int32), "expected 6 rows of 8 numbers, found int32"),
        ("momentum_buffer", np.zeros((6, D + 1), np.float32), "expected 6 rows of 8 numbers"),
        ("weight", np.array(["x"] * 6), "no array of numbers in rows"),
    ],
)
def test_numbers_that_cannot_be_are_named_without_checksums_too(tmp_path, name, values, message):
    shard = make("device", tmp_path)
    update(shard, torch.tensor([3, 7]), 1.0)
    HeadSaver(shard).begin(True).write(tmp_path / "heads")
    np.save(tmp_path / "heads" / "rank_0_of_1" / "layer_0" / f"{name}.npy", values)
    with pytest.raises(DamagedError, match=rf"{name}\.npy is damaged: {message}"):
        load(make("device", tmp_path), tmp_path / "heads")
