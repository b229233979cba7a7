import logging
import math
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

from pair_stub import Stub, made_set
from ranks import run_ranks
from training import verification
from training.verification import Verification
from utils.distributed import get_rank
from utils.log import log

CPU = torch.device("cpu")


class Metrics:
    """Takes what a MetricsWriter takes."""

    def __init__(self, best=math.nan):
        self.best = best
        self.lines = []

    def write(self, step, values):
        self.lines.append((step, values))

    def highest(self, name):
        return self.best


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def listen():
    handler = Lines()
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO if get_rank() == 0 else logging.WARNING)
    return handler.lines


@pytest.fixture
def lines():
    before = log.handlers, log.propagate, log.level
    yield listen()
    log.handlers, log.propagate = before[:2]
    log.setLevel(before[2])


def save(folder, name, pairs):
    (folder / f"{name}.bin").write_bytes(pickle.dumps((pairs.encoded, pairs.issame.tolist())))


@pytest.fixture
def data(tmp_path):
    save(tmp_path, "lfw", made_set(20))
    save(tmp_path, "cfp_fp", made_set(13))
    return tmp_path


def make(data, targets, metrics=None):
    return Verification(targets, data, CPU, 8, metrics or Metrics())


def test_what_is_logged_and_recorded(data, lines):
    metrics = Metrics()
    verify = make(data, ["lfw"], metrics)
    verify(Stub(), 100)
    text = "\n".join(lines)
    assert "[lfw][100]Accuracy-Flip: 1.00000+-0.00000" in text
    assert "[lfw][100]Accuracy-Highest: 1.00000" in text
    assert "[lfw][100]TAR: 1.0000 at FAR 0.1" in text
    assert re.search(r"\[lfw\]\[100\]Cosine: genuine 1.0000, impostor \S+, spread 0\.\d{4}", text)
    ((step, values),) = metrics.lines
    assert step == 100
    assert values["lfw/accuracy"] == 1
    assert values["lfw/tar_at_far_0.1"] == 1
    assert values["lfw/spread"] > 0
    assert values["lfw/norm"] > 0
    assert "lfw/tar_at_far_0.001" not in values


def test_the_best_goes_on_from_what_was_written_before(data, lines):
    verify = make(data, ["lfw"], Metrics(best=0.75))
    collapsed = Stub()
    with torch.no_grad():
        collapsed.fc.weight.zero_()
    verify(collapsed, 5)
    assert "[lfw][5]Accuracy-Highest: 0.75000" in lines
    verify(Stub(), 6)
    assert "[lfw][6]Accuracy-Highest: 1.00000" in lines


def test_a_collapsed_network_is_told_but_not_before_training(data, lines):
    verify = make(data, ["lfw"])
    collapsed = Stub()
    with torch.no_grad():
        collapsed.fc.weight.zero_()
    verify(collapsed, 0)
    assert not any("nearly the same" in line for line in lines)
    verify(collapsed, 10)
    assert any("[lfw][10]all embeddings are nearly the same" in line for line in lines)


def test_nan_is_told_and_training_goes_on(data, lines):
    verify = make(data, ["lfw"])
    broken = Stub()
    with torch.no_grad():
        broken.fc.weight[0, 0] = float("nan")
    verify(broken, 10)
    text = "\n".join(lines)
    assert "[lfw][10]40 of 40 embeddings are not finite" in text
    assert "training has diverged" in text
    assert "TAR" not in text


def test_sets_that_cannot_be_read_are_left_out_with_one_warning(data, lines):
    (data / "calfw.bin").write_bytes(b"no pickle")
    verify = make(data, ["agedb_30", "lfw", "calfw"])
    assert [pairs.name for pairs in verify.sets] == ["lfw"]
    missing = f"verification set agedb_30 is left out: there is no {data / 'agedb_30.bin'}"
    assert sum(line.startswith(missing) for line in lines) == 1
    assert sum("calfw is left out" in line for line in lines) == 1


def test_csv_lists_in_training(data, lines):
    pairs = made_set(3)
    for i, image in enumerate(pairs.encoded):
        (data / f"{i}.png").write_bytes(image)
    (data / "own.csv").write_text(
        "".join(f"{2 * i}.png,{2 * i + 1}.png,{int(s)}\n" for i, s in enumerate(pairs.issame))
    )
    verify = make(data, ["own"])
    verify(Stub(), 3)
    assert any("[own][3]Accuracy-Flip" in line for line in lines)


def test_files_of_one_name_are_told_apart_and_a_set_named_twice_is_one(data, lines):
    (data / "other").mkdir()
    save(data / "other", "lfw", made_set(7))
    other = str(data / "other" / "lfw.bin")
    metrics = Metrics()
    verification = Verification(["lfw", other, "lfw"], data, CPU, 8, metrics)
    verification(Stub(), 1)
    assert [(pairs.name, len(pairs.issame)) for pairs in verification.sets] == [("lfw", 20), (other, 7)]
    assert [next(iter(values)) for _, values in metrics.lines] == ["lfw/accuracy", f"{other}/accuracy"]


def test_a_large_set_is_only_looked_at_before_training(data, lines, monkeypatch):
    monkeypatch.setattr(verification, "WHOLE_AT_START", 15)
    monkeypatch.setattr(verification, "PAIRS_AT_START", 6)
    metrics = Metrics()
    verify = make(data, ["lfw", "cfp_fp"], metrics)
    seen = 0

    class Counting(Stub):
        def forward(self, x):
            nonlocal seen
            seen += len(x)
            return super().forward(x)

    verify(Counting(), 0)
    assert seen == 2 * ((3 + 6) + (7 + 12))  # each different image: a genuine pair has one
    assert "[lfw][0]A look at 6 of 20 pairs before training" in lines
    assert not any("[cfp_fp][0]A look" in line for line in lines)
    assert [next(iter(values)) for _, values in metrics.lines] == ["cfp_fp/accuracy"]  # comparable figures only
    assert not any("[lfw][0]Accuracy-Highest" in line for line in lines)
    verify(Stub(), 4)
    assert [step for step, values in metrics.lines if "lfw/accuracy" in values] == [4]


@pytest.mark.parametrize("whole", [0, 100])
def test_a_broken_image_shows_before_training_wherever_it_is(data, lines, monkeypatch, whole):
    monkeypatch.setattr(verification, "WHOLE_AT_START", whole)
    monkeypatch.setattr(verification, "PAIRS_AT_START", 2)
    pairs = made_set(20)
    pairs.encoded[17] = b"no image"
    save(data, "agedb_30", pairs)
    verify = make(data, ["agedb_30", "lfw"])
    verify(Stub(), 0)
    assert sum("verification set agedb_30 is left out" in line and "image 17" in line for line in lines) == 1
    assert [kept.name for kept in verify.sets] == ["lfw"]
    assert any("[lfw][0]Accuracy-Flip" in line for line in lines)


def verify_on_ranks(rank, world_size, folder, whole):
    verification.WHOLE_AT_START, verification.PAIRS_AT_START = whole, 4
    written = listen()
    metrics = Metrics()
    seen = 0

    class Counting(Stub):
        def forward(self, x):
            nonlocal seen
            seen += len(x)
            return super().forward(x)

    verify = Verification(["lfw", "cfp_fp"], folder, CPU, 4, metrics)
    network = Counting()
    verify(nn.parallel.DistributedDataParallel(network) if world_size > 1 else network, 0)
    at_start, seen = seen, 0
    verify(network, 10)
    return metrics.lines, written, at_start, seen


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_work_and_report_as_one(data, world_size, lines):
    try:
        (alone,) = (verify_on_ranks(0, 1, data, 15),)
    finally:
        verification.WHOLE_AT_START, verification.PAIRS_AT_START = 1_500, 150
    ranks = run_ranks(verify_on_ranks, world_size, data, 15)
    for metrics, *_ in ranks:  # every rank knows the figures; only rank 0's MetricsWriter has a file
        for (step, found), (wanted_step, wanted) in zip(metrics, alone[0], strict=True):
            assert step == wanted_step
            assert list(found) == list(wanted)
            np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-6)
    assert len(ranks[0][1]) == len(alone[1])
    assert not any(rank[1] for rank in ranks[1:])  # rank 0 reports
    assert (
        sum(rank[3] for rank in ranks) == alone[3] == 2 * ((10 + 20) + (7 + 12))
    )  # each different image: a genuine pair has one
    assert all(abs(rank[3] - alone[3] / world_size) <= 4 for rank in ranks)
    assert sum(rank[2] for rank in ranks) == alone[2] == 2 * ((2 + 4) + (7 + 12))


def broken_on_ranks(rank, world_size, folder):
    verification.WHOLE_AT_START = 0
    written = listen()
    verify = Verification(["agedb_30", "lfw"], folder, CPU, 4, Metrics())
    verify(Stub(), 0)
    return [pairs.name for pairs in verify.sets], written


@pytest.mark.distributed
def test_a_broken_image_in_one_ranks_share_leaves_the_set_out_on_all(data):
    pairs = made_set(20)
    pairs.encoded[39] = b"no image"
    save(data, "agedb_30", pairs)
    ranks = run_ranks(broken_on_ranks, 2, data)
    assert [names for names, _ in ranks] == [["lfw"], ["lfw"]]
    assert any("agedb_30 is left out: image 39" in line for line in ranks[0][1])
    assert ranks[1][1] == []
