from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sampler import EpochSampler, epoch_permutation


class TestEpochSampler:
    @pytest.mark.parametrize("world_size", [1, 2, 3, 4])
    def test_same_global_batches_on_any_number_of_ranks(self, world_size):
        alone = list(EpochSampler(100, 12))
        ranks = [list(EpochSampler(100, 12 // world_size, rank, world_size)) for rank in range(world_size)]
        assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone

    @settings(deadline=None)
    @given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
    def test_full_and_disjoint(self, n, batch_size, world_size, epoch):
        if n < batch_size * world_size:
            with pytest.raises(ValueError, match=f"epoch of {n} images .* {world_size} ranks x {batch_size} = "):
                EpochSampler(n, batch_size, 0, world_size)
            return
        seen = []
        for rank in range(world_size):
            sampler = EpochSampler(n, batch_size, rank, world_size)
            sampler.set_position(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler) == sampler.steps_per_epoch == n // (batch_size * world_size)
            assert all(len(batch) == batch_size for batch in batches)
            seen += chain(*batches)
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(range(n))

    def test_seed_and_epoch(self):
        sampler = EpochSampler(50, 5)
        first = list(sampler)
        assert list(sampler) == first
        assert list(EpochSampler(50, 5, seed=1)) != first
        sampler.set_position(1)
        assert list(sampler) != first

    def test_resume(self):
        sampler = EpochSampler(50, 5)
        sampler.set_position(3)
        epoch = list(sampler)
        sampler.set_position(3, 4)
        assert list(sampler) == epoch[4:]
        assert len(sampler) == 6

    def test_running_iteration_keeps_its_position(self):
        sampler = EpochSampler(50, 5)
        whole, running = list(sampler), iter(sampler)
        sampler.set_position(1, 3)
        assert list(running) == whole

    def test_no_such_step(self):
        sampler = EpochSampler(50, 5)
        sampler.set_position(0, 10)
        assert list(sampler) == []
        for epoch, step in ((0, 11), (0, -1), (-1, 0)):
            with pytest.raises(ValueError, match="an epoch has 10 steps"):
                sampler.set_position(epoch, step)

    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_no_batch(self, batch_size):
        with pytest.raises(ValueError, match="change batch_size"):
            EpochSampler(5, batch_size)


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
