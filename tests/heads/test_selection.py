"""The choice of heads is held against a loop over labels and classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.layout import Layout
from heads.selection import draw_heads, select_heads
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
        select_heads(Layout(60, 7, 0, 9), torch.tensor([5, label]), torch.empty(0, dtype=torch.int64), "batch")
