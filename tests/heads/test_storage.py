"""Heads on the device, in host memory and in files give the same bits, fetched ahead or not."""

import errno
import os
import subprocess
import threading
import time

import pytest
import torch

from heads import storage as head_storage
from heads.checkpoint import save_heads
from heads.optim import RowAdamW, RowSGD
from losses import ArcFace
from partial_fc_mhs import PartialFCMHS
from saved_heads import load

C, L, D, STEPS = 53, 4, 8, 12
OPTIMIZERS = {
    "sgd": lambda classifier: RowSGD(classifier.shard, 0.5, 0.9, 5e-2),
    "adamw": lambda classifier: RowAdamW(classifier.shard, 0.05, weight_decay=0.1),
}
PLACES = ("device", "host", "file")


def make(place, folder, **options):
    options = {"head_size": L, "seed": 3, **options}
    return PartialFCMHS(ArcFace(16.0, 0.3), D, C, head_storage=place, head_folder=folder / place, **options)


def batches(steps=STEPS):
    """Labels from a few heads, so that neighbouring batches share some."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(steps, 6, D, generator=g)
    labels = torch.randint(0, 24, (steps, 6), generator=g)
    labels[::3, 0] = C - 1  # the short last head
    return x, labels


def train(classifier, optimizer, ahead=0, accumulate=1, skip=()):
    """The loss of each step; ``ahead``: how many batches are announced before they are due."""
    x, labels = batches()
    announced = 0
    losses = []
    for step in range(STEPS):
        while ahead and announced < min(step + 1 + ahead, STEPS):
            classifier.shard.prefetch(labels[announced])
            announced += 1
        loss = classifier(x[step].clone().requires_grad_(), labels[step])
        loss.backward()
        losses.append(float(loss.detach()))
        if (step + 1) % accumulate == 0:
            if step not in skip:
                optimizer.step()
            optimizer.zero_grad()
    classifier.shard.storage.flush()
    return losses


def everything(classifier):
    heads = torch.arange(classifier.shard.layout.num_heads)
    storage = classifier.shard.storage
    values = storage.take(storage.fetch(heads))
    return [*(values[name] for name in sorted(values)), storage.visits.clone()]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    found = {}

    def of(name, **options):
        key = (name, tuple(sorted(options.items())))
        if key not in found:
            keywords = dict(options)
            classifier = make("device", tmp_path_factory.mktemp("reference"), negative_rate=keywords.pop("rate", 0.0))
            losses = train(classifier, OPTIMIZERS[name](classifier), **keywords)
            found[key] = losses, everything(classifier)
        return found[key]

    return of


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_place_gives_the_same_bits_fetched_ahead_or_not(tmp_path, reference, name, place, ahead):
    classifier = make(place, tmp_path)
    losses = train(classifier, OPTIMIZERS[name](classifier), ahead)
    want_losses, want = reference(name)
    assert losses == want_losses
    assert all(torch.equal(a, b) for a, b in zip(everything(classifier), want, strict=True))
    classifier.shard.storage.close()


@pytest.mark.parametrize("place", ["host", "file"])
@pytest.mark.parametrize("options", [{"accumulate": 3}, {"skip": (2, 3, 7)}, {"rate": 0.4}])
def test_accumulation_skipped_steps_and_negatives(tmp_path, reference, place, options):
    keywords = dict(options)
    classifier = make(place, tmp_path, negative_rate=keywords.pop("rate", 0.0))
    losses = train(classifier, OPTIMIZERS["sgd"](classifier), 2, **keywords)
    want_losses, want = reference("sgd", **options)
    assert losses == want_losses
    assert all(torch.equal(a, b) for a, b in zip(everything(classifier), want, strict=True))


def test_a_slow_disk_is_waited_for(tmp_path, reference, monkeypatch):
    real = head_storage.HeadStorage._write

    def slow(*args):
        time.sleep(0.02)
        real(*args)

    monkeypatch.setattr(head_storage.HeadStorage, "_write", slow)
    classifier = make("file", tmp_path)
    assert train(classifier, OPTIMIZERS["sgd"](classifier), 1) == reference("sgd")[0]
    assert all(torch.equal(a, b) for a, b in zip(everything(classifier), reference("sgd")[1], strict=True))


def test_a_step_does_not_wait_for_the_writer_and_a_flush_does(tmp_path, monkeypatch):
    may_write, has_written = threading.Event(), threading.Event()
    real = head_storage.HeadStorage._write

    def held(*args):
        assert may_write.wait(60)
        real(*args)
        has_written.set()

    monkeypatch.setattr(head_storage.HeadStorage, "_write", held)
    x, labels = batches()
    classifier = make("host", tmp_path)
    optimizer = RowAdamW(classifier.shard, 0.1)
    classifier(x[0].requires_grad_(), labels[0]).backward()
    optimizer.step()
    assert not has_written.is_set()
    threading.Timer(0.2, may_write.set).start()
    optimizer.shard.storage.flush()
    assert has_written.is_set()


def test_untouched_heads_take_no_room_on_disk(tmp_path):
    classifier = PartialFCMHS(ArcFace(), 512, 1_000_000, head_size=12, head_storage="file", head_folder=tmp_path)
    optimizer = RowSGD(classifier.shard, 0.1, 0.9)
    classifier(torch.randn(4, 512, requires_grad=True), torch.tensor([0, 5, 500_000, 999_999])).backward()
    optimizer.step()
    classifier.shard.storage.flush()
    files = [os.fstat(file) for file in classifier.shard.storage.arrays.files.values()]
    assert [f.st_size for f in files] == [1_000_000 * 512 * 4] * 2
    assert sum(f.st_blocks * 512 for f in files) < 1_000_000
    assert not list(tmp_path.iterdir()), "the files have no name and go with the process"
    assert torch.equal(
        classifier.shard.centres(torch.tensor([777])), classifier.shard.initial_centres(torch.tensor([777]))
    )
    classifier.shard.storage.close()


def test_centres_in_any_order(tmp_path):
    classifier = make("file", tmp_path)
    train(classifier, OPTIMIZERS["sgd"](classifier))
    classes = torch.tensor([52, 0, 17, 3, 16])
    assert torch.equal(classifier.shard.centres(classes), everything(classifier)[1][classes])


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    classifier = make("file", tmp_path)
    optimizer = OPTIMIZERS["sgd"](classifier)
    x, labels = batches()
    monkeypatch.setattr(os, "pwrite", full_disk)
    classifier(x[0].requires_grad_(), labels[0]).backward()
    optimizer.step()
    for again in (
        classifier.shard.storage.flush,
        lambda: save_heads(classifier.shard, tmp_path / "saved"),
        classifier.shard.storage.close,
    ):
        with pytest.raises(OSError, match=r"could not be written to .*No space left.*go on from the last checkpoint"):
            again()


def test_a_really_full_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        classifier = PartialFCMHS(ArcFace(), 512, 100_000, head_size=10, head_storage="file", head_folder=small)
        optimizer = RowSGD(classifier.shard, 0.1, 0.9)
        with pytest.raises(OSError, match="No space left"):  # noqa: PT012
            for step in range(20):
                labels = torch.arange(8) * 100 + step * 100  # neighbouring steps share heads
                classifier.shard.prefetch(labels)
                classifier(torch.randn(8, 512, requires_grad=True), labels).backward()
                optimizer.step()
                optimizer.zero_grad()
            classifier.shard.storage.flush()
        with pytest.raises(OSError, match="No space left"):
            classifier.shard.storage.close()
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


@pytest.mark.parametrize("place", PLACES)
def test_checkpoints_hold_the_updated_heads_only(tmp_path, place):
    classifier = make(place, tmp_path)
    train(classifier, OPTIMIZERS["adamw"](classifier))
    save_heads(classifier.shard, tmp_path / "saved")
    visited = int((classifier.shard.visits > 0).sum())
    (part,) = (tmp_path / "saved").iterdir()
    assert (part / "layer_0" / "weight.npy").stat().st_size <= 128 + visited * L * D * 4
    assert visited < classifier.shard.layout.num_heads
    for other in PLACES:
        copy = make(other, tmp_path / "copy")
        RowAdamW(copy.shard, 0.05)
        load(copy.shard, tmp_path / "saved")
        assert all(torch.equal(a, b) for a, b in zip(everything(copy), everything(classifier), strict=True))


def test_a_missing_part_of_a_checkpoint_is_an_error(tmp_path):
    classifier = make("device", tmp_path)
    RowSGD(classifier.shard, 0.1, 0.9)
    with pytest.raises(ValueError, match="holds the heads of ranks \\[\\], not of all"):
        load(classifier.shard, tmp_path / "nothing")
    save_heads(classifier.shard, tmp_path / "saved")
    (tmp_path / "saved" / "rank_0_of_1").rename(tmp_path / "saved" / "rank_0_of_2")
    with pytest.raises(ValueError, match="holds the heads of ranks \\[0\\], not of all"):
        load(classifier.shard, tmp_path / "saved")


def test_labels_other_than_announced_are_an_error(tmp_path):
    classifier = make("host", tmp_path)
    x, labels = batches()
    classifier.shard.prefetch(labels[0])
    with pytest.raises(ValueError, match="differ from those announced"):
        classifier(x[0], labels[1])
    classifier(x[0], labels[0].clone())
    assert not classifier.shard.has_announced


def test_forgetting_what_was_announced(tmp_path, reference):
    classifier = make("host", tmp_path)
    classifier.shard.prefetch(torch.tensor([50, 50, 50, 1, 2, 3]))
    classifier.shard.forget_prefetched()
    assert train(classifier, OPTIMIZERS["sgd"](classifier), 1) == reference("sgd")[0]


def test_a_checkpoint_takes_the_place_of_what_was_announced(tmp_path):
    """The announced heads were drawn for another iteration."""
    classifier = make("host", tmp_path, negative_rate=0.4)
    x, labels = batches()
    classifier.shard.prefetch(labels[0])
    classifier.shard.load_settings({**classifier.shard.settings(), "iteration": 7})
    classifier(x[0], labels[0])
    want = classifier.shard.select(labels[0], 7).heads_h
    assert torch.equal(classifier.shard.pending[0].selection.heads_h, want)
    assert not torch.equal(classifier.shard.select(labels[0], 0).heads_h, want)


@pytest.mark.parametrize("place", ["device", "host"])
def test_a_state_dict_holds_centres_optimizer_state_and_visits(tmp_path, place):
    classifier = make(place, tmp_path)
    train(classifier, OPTIMIZERS["adamw"](classifier))
    copy = make("host", tmp_path)
    RowAdamW(copy.shard, 0.05)
    copy.load_state_dict(classifier.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(everything(copy), everything(classifier), strict=True))
    assert copy.shard.iteration == classifier.shard.iteration == STEPS
    other = make("host", tmp_path)
    RowSGD(other.shard, 0.1, 0.9)
    with pytest.raises(
        ValueError, match="saved with exp_avg, exp_avg_sq, weight, this run needs momentum_buffer, weight"
    ):
        other.load_state_dict(classifier.state_dict())


def test_heads_in_files_are_no_tensor(tmp_path):
    classifier = make("file", tmp_path)
    for use in (lambda: classifier.shard.weight, classifier.state_dict, lambda: classifier.set_extra_state({})):
        with pytest.raises(ValueError, match=r"no tensor: see centres\(\), and heads/checkpoint"):
            use()


@pytest.mark.parametrize("classes", [[0, C], [-1, 2]])
def test_centres_of_classes_that_are_not_here(tmp_path, classes):
    with pytest.raises(ValueError, match=rf"holds classes \[0, {C}\), asked for {classes[0]} to {classes[1]}"):
        make("device", tmp_path).shard.centres(torch.tensor(classes))


def test_evaluation_does_not_use_up_announcements(tmp_path):
    classifier = make("file", tmp_path)
    x, labels = batches()
    classifier.shard.prefetch(labels[0])
    with torch.no_grad():
        classifier(x[1], labels[1])
    classifier(x[0].requires_grad_(), labels[0]).backward()
    assert len(classifier.shard.pending) == 1


def test_two_runs_may_share_a_folder(tmp_path):
    first = make("file", tmp_path)
    train(first, OPTIMIZERS["sgd"](first))
    before = everything(first)
    second = make("file", tmp_path)
    RowSGD(second.shard, 0.1, 0.9)
    assert all(torch.equal(a, b) for a, b in zip(everything(first), before, strict=True))


def test_the_optimizer_comes_before_the_first_forward(tmp_path):
    classifier = make("device", tmp_path)
    classifier.shard.prefetch(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="before the first forward"):
        RowSGD(classifier.shard, 0.1, 0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"head_storage": "disk"}, "head_storage must be"), ({"head_storage": "file"}, "head_folder")],
)
def test_refuses_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        PartialFCMHS(ArcFace(), D, C, head_size=L, **options)


@pytest.mark.parametrize("name", ["preadv", "pread"])
def test_a_read_of_which_the_system_gives_a_part_goes_on(tmp_path, monkeypatch, name):
    """Linux gives 2 GiB a call at most, and a head may be longer; systems without preadv take pread."""
    classifier = make("file", tmp_path)
    train(classifier, OPTIMIZERS["sgd"](classifier))
    want = everything(classifier)
    calls = []
    if name == "pread":
        monkeypatch.delattr(os, "preadv")
        monkeypatch.delattr(os, "posix_fadvise")
    real = getattr(os, name)

    def some(descriptor, what, offset):
        calls.append(offset)
        return real(descriptor, [what[0][:24]] if name == "preadv" else min(what, 24), offset)

    monkeypatch.setattr(os, name, some)
    assert all(torch.equal(a, b) for a, b in zip(everything(classifier), want, strict=True))
    assert len(calls) > 2 * len(set(classifier.shard.visits.nonzero()))
