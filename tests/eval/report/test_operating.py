import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.report import operating
from eval.report.operating import equal_error_rate, operating_points, score_histogram, worst_pairs
from eval.roc import FAR_GRID, Roc, roc


def some_pairs(seed=0, n=3000, decimals=16, apart=2.0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(np.int64)
    labels[:2] = 0, 1
    return np.round(rng.normal(apart * labels, 1.0) / 6, decimals), labels


@pytest.mark.parametrize("decimals", [1, 2, 16])
@pytest.mark.parametrize("seed", range(4))
def test_threshold_gives_the_curves_point(seed, decimals):
    """Counting the pairs above the threshold gives the TAR of the table and the counts, ties included."""
    scores, labels = some_pairs(seed, decimals=decimals)
    curve = roc(labels, scores)
    for point in operating_points(curve, scores, labels, [*FAR_GRID, 0.3, 0.999]):
        accepted = scores > point.threshold
        assert accepted[labels == 1].mean() == pytest.approx(point.tar, abs=1e-12)
        assert point.tar == curve.tar_at(point.far)
        assert accepted[labels == 0].sum() == point.false_accepts
        assert (~accepted)[labels == 1].sum() == point.false_rejects
        assert point.resolved == curve.resolves(point.far)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), min_size=2, max_size=30))
def test_threshold_on_any_small_set(pairs):
    labels = np.array([label for label, _ in pairs] + [0, 1])
    scores = np.array([score for _, score in pairs] + [0, 0]) / 4
    curve = roc(labels, scores)
    for point in operating_points(curve, scores, labels, [1e-6, 0.1, 0.5, 0.9, 1.0]):
        accepted = scores > point.threshold
        assert accepted[labels == 1].mean() == pytest.approx(point.tar)
        assert accepted[labels == 0].sum() == point.false_accepts


def test_two_points_equally_near():
    curve = Roc(np.array([0.0, 0.25, 0.75, 1.0]), np.array([0.0, 0.5, 1.0, 1.0]), 2, 4)
    scores, labels = np.array([0.9, 0.5, 0.8, 0.7, 0.6, 0.1]), np.array([1, 1, 0, 0, 0, 0])
    (point,) = operating_points(curve, scores, labels, [0.5])
    assert (point.tar, point.false_accepts, point.threshold) == (1.0, 3, 0.1)


def test_equal_error_rate_of_a_known_curve():
    assert equal_error_rate(roc([1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1])) == 0
    scores = np.concatenate([np.arange(100) + 80.5, np.arange(100)])  # a fifth of each lies in the overlap
    assert equal_error_rate(roc(np.repeat([1, 0], 100), scores)) == pytest.approx(0.1, abs=0.01)


def test_histogram_counts_every_pair(monkeypatch):
    scores, labels = some_pairs(1)
    monkeypatch.setattr(operating, "_PAIRS_PER_BLOCK", 700)
    edges, genuine, impostor = score_histogram(scores, labels)
    assert edges[0] <= scores.min()
    assert scores.max() < edges[-1]
    for shares, kind in ((genuine, 1), (impostor, 0)):
        chosen = scores[labels == kind]
        by_hand = [np.mean((chosen >= a) & (chosen < b)) for a, b in itertools.pairwise(edges)]
        np.testing.assert_allclose(shares, by_hand, atol=2 / len(chosen))  # a score on an edge may go either way
        assert shares.sum() == pytest.approx(1)


@pytest.mark.parametrize("scores", [[1.0, 1.0], [0.0, 0.0], [-1.0, 1.0], [-4e6, 3e5], [1 + 1e-12, 0.5]])
def test_histogram_of_odd_scores(scores):
    edges, genuine, impostor = score_histogram(np.array(scores), np.array([1, 0]))
    assert len(edges) <= 260
    assert (genuine.max(), genuine.sum(), impostor.max(), impostor.sum()) == (1, 1, 1, 1)


@pytest.mark.parametrize("genuine", [True, False])
@pytest.mark.parametrize("n", [1, 5, 2000, 5000])
def test_worst_pairs_equal_a_full_sort(monkeypatch, genuine, n):
    scores, labels = some_pairs(2)
    monkeypatch.setattr(operating, "_PAIRS_PER_BLOCK", 700)
    rows = np.flatnonzero(labels == int(genuine))
    expected = rows[np.argsort(scores[rows] if genuine else -scores[rows])][:n]
    assert worst_pairs(scores, labels, genuine, n).tolist() == expected.tolist()
    assert worst_pairs(scores, labels, genuine, 0).tolist() == []


def test_memory_is_one_copy_of_the_scores():
    scores, labels = some_pairs(3, n=3_000_000)
    labels[labels == 1] &= np.arange(3_000_000)[labels == 1] % 50 == 0  # few genuine pairs, as in IJB
    curve = roc(labels, scores)
    tracemalloc.start()
    operating_points(curve, scores, labels)
    score_histogram(scores, labels)
    worst_pairs(scores, labels, False, 12)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * scores.nbytes + 32e6
