import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

import eval.roc
from benchmarks import ijb_reference
from eval.ijb.run import tar_table
from eval.roc import FAR_GRID, Roc, plot_roc, roc

pytestmark = pytest.mark.numeric


def brute_tar(labels, scores, far):
    points = [(0.0, 0.0)]
    for threshold in np.unique(scores):
        accepted = scores >= threshold
        points.append((accepted[labels == 0].mean(), accepted[labels == 1].mean()))
    nearest = min(abs(x - far) for x, _ in points)
    return max(y for x, y in points if abs(x - far) == nearest)


@pytest.mark.parametrize("decimals", [1, 16], ids=["many equal scores", "continuous"])
@pytest.mark.parametrize("seed", range(5))
def test_equals_every_threshold_tried(seed, decimals):
    """At the curve's own FARs; between them sklearn leaves out points that lie on straight lines."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 400)
    scores = np.round(rng.normal(labels, 1.0), decimals)
    curve = roc(labels, scores)
    assert len(np.unique(curve.far)) > 20
    for far in curve.far:
        assert curve.tar_at(far) == pytest.approx(brute_tar(labels, scores, far), abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 300),
    levels=st.sampled_from([1, 2, 5, 30, 10**9]),
    share=st.sampled_from([0.02, 0.5, 0.98]),
)
def test_points_and_table_are_those_of_the_field(seed, n, levels, share):
    """Every point of sklearn's curve, ties and dropped points included, and the same text from it."""
    rng = np.random.default_rng(seed)
    labels = (rng.uniform(size=n) < share).astype(np.int64)
    labels[rng.permutation(n)[:2]] = [0, 1]
    scores = rng.integers(-levels, levels + 1, n) / levels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval.roc, "_MANY", 100 if n % 2 else 1 << 20)  # sorted in threads, or not
        patch.setattr(eval.roc, "_SAMPLE", 20)
        curve = roc(labels, scores)
    far, tar, _ = roc_curve(labels, scores)
    np.testing.assert_array_equal(curve.far, far)
    np.testing.assert_array_equal(curve.tar, tar)
    table = tar_table("net-IJBC", {far: curve.tar_at(far) for far in FAR_GRID})
    assert table.get_string() == ijb_reference.tar_table("net-IJBC", labels, scores)


def test_highest_tar_on_a_tie():
    curve = Roc(np.array([0.0, 0.0, 0.25, 0.75, 1.0]), np.array([0.0, 0.5, 0.6, 0.9, 1.0]), 10, 4)
    assert curve.tar_at(0.0) == 0.5
    assert curve.tar_at(0.5) == 0.9  # 0.25 and 0.75 are equally near


def test_resolution_is_one_impostor_pair():
    curve = Roc(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 10, 1000)
    assert curve.resolves(1e-3)
    assert not curve.resolves(1e-4)


def test_perfect_scores():
    curve = roc([1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1])
    assert [curve.tar_at(far) for far in FAR_GRID] == [1] * 6


def test_what_has_no_curve_is_an_error():
    with pytest.raises(ValueError, match="0 genuine and 3 impostor"):
        roc([0, 0, 0], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="1 of 2 scores"):
        roc([0, 1], [0.1, np.nan])


def test_plot_has_labelled_logarithmic_axes(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 3000)
    figure = plot_roc({"net": roc(labels, rng.normal(2 * labels, 1))}, "title")
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == (1e-6, 1e-1)
    assert "FAR" in axes.get_xlabel()
    assert "TAR" in axes.get_ylabel()
    figure.savefig(tmp_path / "roc.pdf")
    assert (tmp_path / "roc.pdf").read_bytes().startswith(b"%PDF")
