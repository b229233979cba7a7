"""Heads kept on the device: which of them are there, and that they are what the home of all heads holds."""

from collections import OrderedDict

import pytest
import torch
from test_storage import OPTIMIZERS, C, D, L, batches, everything, make, train

from heads.cache import GIB, HeadCache, Recency
from heads.layout import Layout
from heads.optim import RowAdamW, RowSGD

CPU = torch.device("cpu")
NAMES = ("weight", "momentum_buffer")
HEAD = len(NAMES) * L * D * 4  # bytes


def cache_of(slots, layout=None, **options):
    layout = layout or Layout.of_rank(C, L, 0, 1)
    return HeadCache(layout, NAMES, D, torch.float32, CPU, slots * HEAD / GIB, **options)


def values_of(layout, heads_h, version):
    """Rows that tell head, class and version."""
    rows_S1 = layout.classes_of(heads_h).float().unsqueeze(1) + version / 1000
    return {name: (rows_S1 + 100 * i).expand(-1, D).contiguous() for i, name in enumerate(NAMES)}


def test_the_longest_unused_come_first():
    g = torch.Generator().manual_seed(0)
    order, want = Recency(40), OrderedDict.fromkeys(range(40))
    for _ in range(300):
        used = torch.randperm(40, generator=g)[: int(torch.randint(0, 41, (), generator=g))]
        order.use(used)
        for number in used.tolist():
            want.move_to_end(number)
        count = int(torch.randint(0, 41, (), generator=g))
        oldest = order.oldest(count)
        assert oldest.tolist() == list(want)[:count]
        order.use(oldest)
        for number in oldest.tolist():
            want.move_to_end(number)


def test_many_repeated_uses_of_some_leave_the_others_in_order():
    order = Recency(5000)
    for _ in range(50):
        order.use(torch.arange(3000))
    assert torch.equal(order.oldest(4000), torch.cat((torch.arange(3000, 5000), torch.arange(2000))))


class Model:
    """What should be in the cache: slots in the order of their use, each with a head's version or empty."""

    def __init__(self, slots):
        self.slots = slots
        self.known = OrderedDict((object(), None) for _ in range(slots))

    def put(self, heads, version):
        here = [head for head in heads if head in self.known]
        new = [head for head in heads if head not in self.known][: self.slots - len(here)]
        for head in (*here, *new):
            self.known[head] = version
            self.known.move_to_end(head)
        while len(self.known) > self.slots:
            self.known.popitem(last=False)

    def drop(self, heads):
        self.known = OrderedDict((object() if k in heads else k, version) for k, version in self.known.items())


@pytest.mark.parametrize("slots", [1, 3, 5, 14, 100])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_holds_the_heads_updated_last_as_they_are(slots, rank, world_size):
    """Against a model that loops over heads; the last rank's last head is short."""
    layout = Layout.of_rank(C, L, rank, world_size)
    cache, g = cache_of(slots, layout), torch.Generator().manual_seed(slots)
    assert cache.slots == min(slots, layout.heads_here), "no memory for more heads than there are"
    model = Model(cache.slots)
    all_h = torch.arange(layout.head_start, layout.head_end)
    for version in range(150):
        heads_h = all_h[torch.rand(len(all_h), generator=g) < (1.0 if version % 40 == 39 else 0.3)]
        if version % 17 == 16:
            cache.drop(heads_h)
            model.drop(heads_h.tolist())
        elif version % 61 == 60:
            cache.clear()
            model.drop(all_h.tolist())
        else:
            cache.put(heads_h, values_of(layout, heads_h, version))
            model.put(heads_h.tolist(), version)
        found = cache.find(all_h, NAMES)
        missing = [i for i, head in enumerate(all_h.tolist()) if head not in model.known]
        if len(missing) == len(all_h):
            assert found is None
            continue
        assert found.missing_n.tolist() == missing
        rows = found.complete(values_of(layout, all_h[missing], -1))
        for head in all_h.tolist():
            head_h = torch.tensor([head])
            want, at = values_of(layout, head_h, model.known.get(head, -1)), (head - layout.head_start) * L
            assert all(torch.equal(rows[name][at : at + len(want[name])], want[name]) for name in NAMES)


def test_what_was_found_does_not_change_with_the_cache():
    cache = cache_of(1)
    first_h, second_h = torch.tensor([3]), torch.tensor([4])
    cache.put(first_h, values_of(cache.layout, first_h, 1))
    found = cache.find(first_h, NAMES)
    cache.put(second_h, values_of(cache.layout, second_h, 2))
    assert cache.find(first_h, NAMES) is None
    assert torch.equal(found.complete({})["weight"], values_of(cache.layout, first_h, 1)["weight"])


def test_a_head_longer_than_all_classes_takes_no_more_than_these():
    layout = Layout.of_rank(6, 100, 0, 1)
    cache, head_h = HeadCache(layout, NAMES, D, torch.float32, CPU, 2 * 6 * D * 4 / GIB), torch.tensor([0])
    cache.put(head_h, values_of(layout, head_h, 5))
    assert torch.equal(cache.find(head_h, ["weight"]).rows["weight"], values_of(layout, head_h, 5)["weight"])


def test_a_rank_without_heads_needs_no_room():
    layout = Layout.of_rank(3, 4, 1, 2)
    cache, none_h = HeadCache(layout, NAMES, D, torch.float32, CPU, 1e-12), torch.empty(0, dtype=torch.int64)
    cache.put(none_h, {name: torch.empty(0, D) for name in NAMES})
    assert (cache.slots, cache.find(none_h, NAMES)) == (0, None)


@pytest.mark.parametrize(("cache", "rate"), [(1.0, 1.0), (2 * HEAD / GIB, 0.5), (1.1 * HEAD / GIB, 0.25)])
@pytest.mark.parametrize("place", ["host", "file"])
def test_a_head_that_is_there_is_not_read(tmp_path, monkeypatch, place, cache, rate):
    """Four heads, updated in turn and then all wanted again."""
    classifier = make(place, tmp_path, head_cache_gib=cache)
    OPTIMIZERS["sgd"](classifier)
    storage, heads_h = classifier.shard.storage, torch.arange(4)
    for head in range(4):
        head_h = torch.tensor([head])
        storage.store(head_h, values_of(classifier.shard.layout, head_h, head))
    assert torch.isnan(torch.tensor(storage.cache.hit_rate()))
    storage.flush()
    asked, read = [], storage.arrays.read
    monkeypatch.setattr(storage.arrays, "read", lambda heads_h, names: asked.append(heads_h) or read(heads_h, names))
    for never_updated in ([], [9, 13]):
        storage.take(storage.fetch(torch.tensor([*range(4), *never_updated])))
        assert storage.cache.hit_rate() == rate, "heads never updated are not read and do not count"
    storage.take(storage.fetch(torch.tensor([10, 11])))
    assert torch.isnan(torch.tensor(storage.cache.hit_rate()))
    assert [head for heads_h in asked for head in heads_h.tolist()] == 2 * list(range(4 - int(4 * rate)))
    for head in heads_h.tolist():
        values = storage.take(storage.fetch(torch.tensor([head])))
        assert torch.equal(values["weight"], values_of(classifier.shard.layout, torch.tensor([head]), head)["weight"])
    storage.close()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("ahead", [0, 2])
def test_training_with_a_thread_of_its_own_gives_the_same_bits(tmp_path, optimizer, ahead):
    found = []
    for place, cache in (("device", 0.0), ("host", 1.6 * HEAD / GIB), ("file", 4 * HEAD / GIB), ("file", 1.0)):
        classifier = make(place, tmp_path, head_cache_gib=cache, negative_rate=0.2)
        losses = train(classifier, OPTIMIZERS[optimizer](classifier), ahead)
        found.append((losses, everything(classifier)))
        classifier.shard.storage.close()
    for losses, values in found[1:]:
        assert losses == found[0][0]
        assert all(torch.equal(a, b) for a, b in zip(values, found[0][1], strict=True))


def test_what_is_written_to_the_tensors_is_seen(tmp_path):
    classifier = make("host", tmp_path, head_cache_gib=1.0)
    train(classifier, RowSGD(classifier.shard, 0.5))
    classes = torch.arange(8)
    assert classifier.shard.storage.cache.find(torch.tensor([0, 1]), ["weight"]) is not None
    classifier.shard.weight.fill_(7)
    assert (classifier.shard.centres(classes) == 7).all()
    before = classifier.state_dict()
    other = make("host", tmp_path, head_cache_gib=1.0)
    train(other, RowSGD(other.shard, 0.1))
    other.load_state_dict(before)
    assert (other.shard.centres(classes) == 7).all()


def test_what_is_restored_is_seen_though_other_rows_were_cached_or_announced(tmp_path):
    classifier = make("host", tmp_path, head_cache_gib=1.0)
    OPTIMIZERS["sgd"](classifier)
    storage, layout, heads_h = classifier.shard.storage, classifier.shard.layout, torch.tensor([2, 5])
    storage.store(heads_h, values_of(layout, heads_h, 1))
    announced = storage.fetch(heads_h)
    storage.restore(heads_h[:1], values_of(layout, heads_h[:1], 2), {"visits": torch.tensor([9], dtype=torch.int32)})
    want = torch.cat((values_of(layout, heads_h[:1], 2)["weight"], values_of(layout, heads_h[1:], 1)["weight"]))
    for fetch in (announced, storage.fetch(heads_h)):
        assert torch.equal(storage.take(fetch)["weight"], want)
    assert storage.visits[[2, 5]].tolist() == [9, 1]
    storage.close()


def test_an_error_of_the_disk_is_found_though_all_heads_are_cached(tmp_path, monkeypatch):
    classifier = make("file", tmp_path, head_cache_gib=1.0)
    optimizer = RowSGD(classifier.shard, 0.5)
    x, labels = batches()

    def fails(*_):
        raise OSError("broken")

    def step():
        classifier(x[0].clone().requires_grad_(), labels[0]).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    classifier.shard.storage.flush()
    monkeypatch.setattr(classifier.shard.storage.arrays, "write", fails)
    step()
    for write in classifier.shard.storage._writing:
        write.exception()
    with pytest.raises(OSError, match=r"could not be written to .*broken"):
        step()


@pytest.mark.parametrize(("state", "size"), [(RowSGD, "weight of 4"), (RowAdamW, "weight, exp_avg, exp_avg_sq of 4")])
def test_a_budget_too_small_for_a_head_is_an_error_that_says_so(tmp_path, state, size):
    classifier = make("host", tmp_path, head_cache_gib=1e-8)
    with pytest.raises(
        ValueError, match=rf"head_cache_gib = 1e-08 has no room for a head: one takes .* GiB \({size}"
    ):
        state(classifier.shard, 0.1)


@pytest.mark.parametrize(("place", "gib"), [("device", 1.0), ("host", -1.0)])
def test_refuses_a_cache_of_heads_on_the_device_and_a_negative_one(tmp_path, place, gib):
    with pytest.raises(
        ValueError, match=rf"head_cache_gib must be at least 0, and 0 with .* got {gib:g} with '{place}'"
    ):
        make(place, tmp_path, head_cache_gib=gib)


def test_says_how_many_heads_stay():
    assert str(cache_of(3)) == "up to 3 of this rank's 14 heads stay on cpu (0.00 GiB: weight, momentum_buffer)"
