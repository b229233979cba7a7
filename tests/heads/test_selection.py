"""The choice of heads is held against a loop over labels and classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.layout import Layout
from heads.selection import check_labels, draw_heads, sample_classes, select_heads
from utils import hashing


def reference(layout, labels, drawn, scope):
    """Selected classes, each label's column, hidden places: one class and one sample after the other."""
    L = layout.head_size
    heads = sorted(
        {label // L for label in labels if layout.head_start <= label // L < layout.head_end} | set(drawn),
    )
    classes = [c for head in heads for c in range(head * L, min((head + 1) * L, layout.num_classes))]
    columns = [classes.index(label) if label in classes else -1 for label in labels]
    hidden = [[label // L != c // L and c // L not in drawn for c in classes] for label in labels]
    return heads, classes, columns, hidden if scope == "own" else None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_a_loop(data):
    C, L, W = (data.draw(st.integers(1, n)) for n in (40, 12, 4))
    rank, scope = data.draw(st.integers(0, W - 1)), data.draw(st.sampled_from(["batch", "own"]))
    rate = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    labels = data.draw(st.lists(st.integers(0, C - 1), min_size=1, max_size=8))
    layout = Layout.of_rank(C, L, rank, W)
    drawn_h = draw_heads(layout, rate, hashing.key(3, data.draw(st.integers(0, 5))))
    assert all(layout.head_start <= head < layout.head_end for head in drawn_h.tolist())
    found = select_heads(layout, torch.tensor(labels), drawn_h, scope)
    heads, classes, columns, hidden = reference(layout, labels, drawn_h.tolist(), scope)
    assert found.heads_h.tolist() == heads
    assert found.classes_S.tolist() == classes
    assert found.columns_G.tolist() == columns
    if hidden is None:
        assert found.hidden_GS is None
    else:
        assert found.hidden_GS.tolist() == hidden


def test_draws_have_their_rate_and_change_with_the_key():
    layout = Layout(60_000, 3, 0, 20_000)
    draws = [draw_heads(layout, 0.2, hashing.key(1, step)) for step in range(2)]
    for drawn in draws:
        assert len(drawn) == pytest.approx(4000, abs=5 * (20_000 * 0.2 * 0.8) ** 0.5)
    assert not torch.equal(*(torch.bincount(drawn, minlength=20_000) for drawn in draws))
    assert draw_heads(layout, 0, 1).numel() == 0
    assert torch.equal(draw_heads(layout, 1, 1), torch.arange(20_000))


@pytest.mark.parametrize(("label", "found"), [(-1, "-1 to 5"), (60, "5 to 60")])
def test_a_label_outside_is_named(label, found):
    with pytest.raises(ValueError, match=rf"\[0, 59\], found {found}; set num_classes"):
        check_labels(torch.tensor([5, label]), 60)


def sampled(num_classes, rate, key, labels, world_size):
    """The classes that all ranks take together, and how many each takes."""
    parts = []
    for rank in range(world_size):
        layout = Layout.of_rank(num_classes, 1, rank, world_size)
        drawn = sample_classes(num_classes, rate, key, labels, layout.class_start, layout.class_end)
        parts.append(select_heads(layout, labels, drawn, "batch").classes_S)
    return torch.cat(parts), [len(part) for part in parts]


def test_partial_fc_takes_its_rate_of_all_classes_with_the_labels_own_among_them():
    labels = torch.randint(93_431, (4096,), generator=torch.Generator().manual_seed(0))
    classes, _ = sampled(93_431, 0.2, 5, labels, 1)
    assert len(classes) == 18_686  # as PartialFC_V2 on one rank: int(0.2 * 93431)
    assert torch.isin(labels, classes).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_sample_is_the_same_on_any_number_of_ranks(data):
    C, rate = data.draw(st.integers(1, 60)), data.draw(st.sampled_from([0.0, 0.1, 0.37, 0.8, 0.99]))
    labels = torch.tensor(data.draw(st.lists(st.integers(0, C - 1), min_size=1, max_size=12)))
    one, _ = sampled(C, rate, 9, labels, 1)
    many, _ = sampled(C, rate, 9, labels, data.draw(st.integers(2, 4)))
    assert torch.equal(one, many)
    assert len(one) == max(int(rate * C), len(labels.unique()))
    assert torch.isin(labels, one).all()


def test_partial_fc_with_rate_0_takes_the_labels_own_classes_alone():
    classes, _ = sampled(1000, 0.0, 1, torch.tensor([7, 3, 7, 999]), 2)
    assert classes.tolist() == [3, 7, 999]


def test_partial_fc_draws_each_class_alike_and_anew_in_each_step():
    labels = torch.tensor([0, 1])
    counts = torch.zeros(40)
    for step in range(2000):
        counts[sampled(40, 0.25, hashing.key(3, step), labels, 1)[0]] += 1
    assert counts[:2].tolist() == [2000, 2000]
    chance = 8 / 38  # of each other class: 10 of 40 less the 2 labels
    assert (counts[2:] / 2000).sub(chance).abs().max() < 5 * (chance * (1 - chance) / 2000) ** 0.5


def test_ranks_share_the_sample_about_evenly():
    _, counts = sampled(80_000, 0.1, 4, torch.tensor([5]), 4)
    assert sum(counts) == 8000
    assert all(abs(n - 2000) < 5 * (8000 * 0.25 * 0.75) ** 0.5 for n in counts)
