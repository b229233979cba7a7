"""The choice of heads is held against a loop over labels and classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.selection import Shard, draw_heads, select_heads
from utils import hashing
from utils.distributed import part_of


def reference(shard, labels, drawn, scope):
    """Selected classes, each label's column, hidden places: one class and one sample after the other."""
    L = shard.head_size
    heads = sorted(
        {label // L for label in labels if shard.head_start <= label // L < shard.head_end} | set(drawn),
    )
    classes = [c for head in heads for c in range(head * L, min((head + 1) * L, shard.num_classes))]
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
    shard = Shard(C, L, *part_of(-(-C // L), rank, W))
    drawn_h = draw_heads(shard, rate, hashing.key(3, data.draw(st.integers(0, 5))))
    assert all(shard.head_start <= head < shard.head_end for head in drawn_h.tolist())
    found = select_heads(shard, torch.tensor(labels), drawn_h, scope)
    heads, classes, columns, hidden = reference(shard, labels, drawn_h.tolist(), scope)
    assert (found.heads_h + shard.head_start).tolist() == heads
    assert (found.rows_S + shard.class_start).tolist() == classes
    assert found.columns_G.tolist() == columns
    if hidden is None:
        assert found.hidden_GS is None
    else:
        assert found.hidden_GS.tolist() == hidden


def test_draws_have_their_rate_and_change_with_the_key():
    shard = Shard(60_000, 3, 0, 20_000)
    draws = [draw_heads(shard, 0.2, hashing.key(1, step)) for step in range(2)]
    for drawn in draws:
        assert len(drawn) == pytest.approx(4000, abs=5 * (20_000 * 0.2 * 0.8) ** 0.5)
    assert not torch.equal(*(torch.bincount(drawn, minlength=20_000) for drawn in draws))
    assert draw_heads(shard, 0, 1).numel() == 0
    assert torch.equal(draw_heads(shard, 1, 1), torch.arange(20_000))


@pytest.mark.parametrize(("label", "found"), [(-1, "-1 to 5"), (60, "5 to 60")])
def test_a_label_outside_is_named(label, found):
    with pytest.raises(ValueError, match=rf"\[0, 59\], found {found}; set num_classes"):
        select_heads(Shard(60, 7, 0, 9), torch.tensor([5, label]), torch.empty(0, dtype=torch.int64), "batch")
