"""Any calls give the same bits wherever heads live; host and device tensors meet only where GPUs let them."""

from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heads import storage as head_storage
from heads.checkpoint import save_heads
from heads.optim import RowAdamW, RowSGD
from losses import ArcFace, get_margin
from partial_fc_mhs import PartialFCMHS
from pretend_device import NAME, PretendDevice
from saved_heads import load

C, L, D, B = 23, 4, 4, 3
ONE_HEAD = 200 / 2**30  # GiB: room for one head, with the state of either optimizer
PLACES = {  # head_storage and head_cache_gib
    "device": ("device", 0.0),
    "host": ("host", 0.0),
    "file": ("file", 0.0),
    "host, one head cached": ("host", ONE_HEAD),
    "file, some heads cached": ("file", 3 * ONE_HEAD),
    "host, all heads cached": ("host", 1.0),
}
OPTIMIZERS = {
    "sgd": lambda classifier: RowSGD(classifier.shard, 0.5, 0.9, 5e-2, nesterov=True),
    "adamw": lambda classifier: RowAdamW(classifier.shard, 0.05, weight_decay=0.1),
}


class Run:
    """A classifier and its optimizer, driven by names of calls; every result is kept."""

    def __init__(self, place, folder, optimizer, rate, scope):
        self.place, self.folder, self.optimizer_name = place, folder, optimizer
        self.options = {"negative_rate": rate, "head_scope": scope, "head_folder": folder}
        self.options["head_storage"], self.options["head_cache_gib"] = PLACES[place]
        self.found = []
        self.saved = 0
        self.make()

    def make(self):
        self.classifier = PartialFCMHS(ArcFace(8.0, 0.3), D, C, head_size=L, **self.options)
        self.optimizer = OPTIMIZERS[self.optimizer_name](self.classifier)
        self.waiting = []

    def prefetch(self, labels):
        self.classifier.shard.prefetch(labels)
        self.waiting.append(labels)

    def forward(self, labels):
        labels = self.waiting.pop(0) if self.waiting else labels
        x = torch.randn(B, D, generator=torch.Generator().manual_seed(int(labels.sum()))).requires_grad_()
        loss = self.classifier(x, labels)
        loss.backward()
        self.found += [loss.detach(), x.grad]

    def evaluate(self, labels):
        with torch.no_grad():
            self.found.append(self.classifier(torch.ones(B, D), labels))

    def step(self, labels):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def skip(self, labels):
        self.optimizer.zero_grad()

    def forget(self, labels):
        self.classifier.shard.forget_prefetched()
        self.waiting.clear()

    def look(self, labels):
        self.found += [self.classifier.shard.centres(labels), self.classifier.shard.visits.clone()]

    def resume(self, labels):
        self.saved += 1
        save_heads(self.classifier.shard, self.folder / f"{self.place}_{self.saved}")
        counted = self.classifier.shard.settings()
        self.classifier.shard.storage.close()
        self.make()
        self.classifier.shard.load_settings(counted)
        load(self.classifier.shard, self.folder / f"{self.place}_{self.saved}")

    def back(self, labels):
        """To the last checkpoint, in the midst of a run: heads that it does not hold stay as they are."""
        if self.saved:
            load(self.classifier.shard, self.folder / f"{self.place}_{self.saved}")


CALLS = ("prefetch", "forward", "step", "evaluate", "skip", "forget", "look", "resume", "back")
labels = st.lists(st.integers(0, C - 1), min_size=B, max_size=B)
often = st.sampled_from(["prefetch", "forward", "step", *CALLS])


@settings(max_examples=40, deadline=None)
@given(
    course=st.lists(st.tuples(often, labels), min_size=1, max_size=25),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    rate=st.sampled_from([0.0, 0.3, 1.0]),
    scope=st.sampled_from(["batch", "own"]),
)
def test_any_course_of_calls_gives_the_same_bits_everywhere(tmp_path_factory, course, optimizer, rate, scope):
    folder = tmp_path_factory.mktemp("heads")
    results = {}
    for place in PLACES:
        run = Run(place, folder, optimizer, rate, scope)
        for call, numbers in [*course, ("step", [0] * B), ("look", list(range(B)))]:
            getattr(run, call)(torch.tensor(numbers))
        run.look(torch.arange(C))
        run.classifier.shard.storage.close()
        results[place] = run.found
    for place in results:
        assert all(torch.equal(a, b) for a, b in zip(results[place], results["device"], strict=True)), place


class AtOnce:
    """An executor that works in the caller's thread, the only one where the pretended device is there.

    Training would not wait for what is done here, so that it is not noted.
    """

    def __init__(self, pretended, device, name):
        self.pretended = pretended

    def submit(self, do, *args):
        before = list(self.pretended.waits)
        done = self.run(do, *args)
        self.pretended.waits[:] = before
        return done

    def run(self, do, *args):
        done = Future()
        try:
            done.set_result(do(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    def shutdown(self, wait):
        pass


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("loss", "scope", "optimizer"),
    [
        ("arcface", "batch", "sgd"),
        ("cosface", "own", "adamw"),
        ("adaface", "batch", "adamw"),
        ("magface", "own", "sgd"),
        ("curricularface", "batch", "sgd"),
        ("combined", "own", "sgd"),
    ],
)
def test_on_a_device_of_its_own(tmp_path, monkeypatch, loss, scope, optimizer, place):
    """The same bits as on the CPU, nothing that a GPU would refuse, and no waiting for the device."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # it knows real devices only
    results, waits = [], []
    for device in ("cpu", NAME):
        with PretendDevice() as pretended:
            monkeypatch.setattr(head_storage, "single_threaded_worker", partial(AtOnce, pretended))
            found = []
            classifier = PartialFCMHS(
                get_margin(loss, 8.0, margin_list=(1.0, 0.3, 0.1) if loss == "combined" else None),
                D,
                C,
                head_size=L,
                head_storage=PLACES[place][0],
                head_cache_gib=PLACES[place][1],
                head_folder=tmp_path,
                head_scope=scope,
                negative_rate=0.3,
                device=device,
            )
            row_optimizer = OPTIMIZERS[optimizer](classifier)
            g = torch.Generator().manual_seed(1)
            x = torch.randn(9, B, D, generator=g)
            batches = torch.randint(0, C, (9, B), generator=g).unbind()
            verdicts = torch.tensor((0.0, 1.0)).to(device)
            classifier.shard.prefetch(batches[0])
            for i, numbers in enumerate(batches):
                x_BD = x[i].to(device).requires_grad_()
                pretended.waits.clear()
                if i < 8:
                    classifier.shard.prefetch(batches[i + 1])
                value = classifier(x_BD, numbers)
                value.backward()
                if i % 3:  # steps of one forward and of two, whose verdicts are known when the next one is taken
                    row_optimizer.learn(i == 4)  # of the step before, 2
                    row_optimizer.found_inf = verdicts[int(i == 2)]
                    row_optimizer.step()
                    row_optimizer.zero_grad()
                waits += pretended.waits if device == NAME else []
                found += [value.detach().cpu(), x_BD.grad.cpu()]
            row_optimizer.learn(False)
            save_heads(classifier.shard, tmp_path / f"saved_{device}")
            classifier.shard.prefetch(batches[0])
            load(classifier.shard, tmp_path / f"saved_{device}")
            found += [classifier(x[0].to(device).requires_grad_(), batches[0]).detach().cpu()]
            found += [classifier.shard.centres(torch.arange(C)).cpu(), classifier.shard.visits.clone()]
            results.append(found)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not waits
