"""The blocked scan finds what the whole matrix shows."""

import math

import numpy as np
import pytest
import torch

from tools.parts.nearest import nearest

CPU = torch.device("cpu")


def unit(n, d=8, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [1, 3, 7, 23, 100])
@pytest.mark.parametrize("k", [1, 4])
def test_among_themselves(block, k):
    rows = unit(23)
    whole = rows @ rows.T
    upper = whole[np.triu_indices(23, 1)]
    np.fill_diagonal(whole, -np.inf)
    found = nearest(rows, None, k, CPU, block)
    np.testing.assert_array_equal(found.numbers_nk, (-whole).argsort(1)[:, :k])
    np.testing.assert_allclose(found.cosines_nk, -np.sort(-whole, 1)[:, :k], atol=1e-6)
    assert found.compared == len(upper)
    np.testing.assert_allclose([found.mean, found.std], [upper.mean(), upper.std()], atol=1e-6)


@pytest.mark.parametrize("block", [2, 5, 100])
def test_against_others(block):
    rows, others = unit(9), unit(13, seed=1)
    whole = rows @ others.T
    found = nearest(rows, others, 3, CPU, block)
    np.testing.assert_array_equal(found.numbers_nk, (-whole).argsort(1)[:, :3])
    assert found.compared == whole.size
    np.testing.assert_allclose([found.mean, found.std], [whole.mean(), whole.std()], atol=1e-6)


def test_fewer_than_k_and_none():
    found = nearest(unit(2), None, 5, CPU)
    assert found.numbers_nk.tolist() == [[1, -1, -1, -1, -1], [0, -1, -1, -1, -1]]
    assert len(found.pairs(-1.0)) == 2
    for n in (0, 1):
        found = nearest(unit(n), None, 5, CPU)
        assert (found.compared, found.pairs(-1.0)) == (0, [])


def test_the_limit_lets_as_many_through_as_expected():
    rows = unit(1500, 64)
    cosines = (rows @ rows.T)[np.triu_indices(1500, 1)]
    limit = nearest(rows, None, 1, CPU).limit(100)
    assert 30 < (cosines > limit).sum() < 200
    assert nearest(rows, None, 1, CPU).limit(1) > limit


def test_few_pairs_and_a_large_share_of_them_show_no_limit():
    for n, expected, is_known in ((2, 1, False), (45, 1, False), (46, 1, True), (46, 10, True), (46, 11, False)):
        found = nearest(unit(n), None, 1, CPU)
        assert (found.limit(expected) < math.inf) == is_known
        assert found.pairs(math.inf) == []
    assert nearest(unit(0), None, 1, CPU).limit(1) == math.inf
