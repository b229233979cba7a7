import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.shuffle import epoch_permutation


@settings(max_examples=200, deadline=None)
@given(n=st.integers(0, 700), chunk=st.integers(1, 40), window=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_sample_once_and_a_function_of_the_arguments(n, chunk, window, seed):
    order = epoch_permutation(n, seed, 3, chunk, window)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    assert (order == epoch_permutation(n, seed, 3, chunk, window)).all()


@settings(max_examples=100, deadline=None)
@given(chunks=st.integers(2, 60), chunk=st.integers(2, 30), window=st.integers(1, 9))
def test_a_window_holds_whole_chunks(chunks, chunk, window):
    n = chunks * chunk
    order = epoch_permutation(n, 1, 0, chunk, window)
    for start in range(0, n, window * chunk):
        inside = order[start : start + window * chunk]
        touched = np.unique(inside // chunk)
        assert len(touched) * chunk == len(inside)


def test_without_chunks_it_is_the_plain_permutation():
    plain = np.random.default_rng([7, 2]).permutation(1000)
    assert (epoch_permutation(1000, 7, 2) == plain).all()
    assert (epoch_permutation(1000, 7, 2, chunk=1, window=5) == plain).all()


def test_epochs_and_seeds_differ():
    orders = [epoch_permutation(5000, seed, epoch, 50, 4).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_samples_are_mixed_within_a_window():
    """Neighbours in the order are seldom neighbours in the file, and every chunk is spread over its window."""
    order = epoch_permutation(64 * 256 * 4, 0, 0, 256, 64)
    assert (np.abs(np.diff(order)) == 1).mean() < 0.01
    window = order[: 64 * 256]
    places = np.flatnonzero(window // 256 == window[0] // 256)
    assert len(places) == 256
    assert abs(places.mean() / (64 * 256) - 0.5) < 0.1


@pytest.mark.parametrize(("chunk", "window"), [(0, 1), (-1, 4), (4, 0)])
def test_refused(chunk, window):
    with pytest.raises(ValueError, match=f"at least 1, got {chunk} and {window}"):
        epoch_permutation(10, 0, 0, chunk, window)
