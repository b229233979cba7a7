"""Draws are functions of their key and id alone, and look random."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils import hashing


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=4), st.integers(0, 3))
def test_key_depends_on_every_part(parts, which):
    which %= len(parts)
    other = list(parts)
    other[which] += 1
    assert hashing.key(*parts) == hashing.key(*parts)
    assert hashing.key(*parts) != hashing.key(*other)
    assert -(2**63) <= hashing.key(*parts) < 2**63


def test_order_of_parts_counts():
    assert hashing.key(1, 2) != hashing.key(2, 1)
    assert hashing.key(1) != hashing.key(1, 0)


def test_mix_equals_splitmix64():
    """The first outputs of SplitMix64 seeded with 0, as published with the algorithm."""
    golden = 0x9E3779B97F4A7C15
    states = torch.tensor([0, golden - 2**64, 2 * golden - 2 * 2**64 + 2**64])
    want = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(v) % 2**64 for v in hashing.mix(states)] == want


def test_uniform():
    u = hashing.uniform(hashing.key(5), torch.arange(1_000_000))
    assert 0 <= u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    counts = torch.histc(u, 100, 0, 1)
    assert ((counts - 10_000).abs() < 5 * 100).all()


def test_normal_rows_do_not_depend_on_their_neighbours():
    key = hashing.key(7)
    ids = torch.randperm(5000)[:300]
    together = hashing.normal(key, ids, 65)
    for place in (0, 17, 299):
        assert torch.equal(hashing.normal(key, ids[place : place + 1], 65)[0], together[place])
    assert together.shape == (300, 65)


def test_inputs_are_not_modified():
    ids = torch.arange(5)
    hashing.mix(ids)
    hashing.uniform(3, ids)
    hashing.normal(3, ids, 4)
    assert torch.equal(ids, torch.arange(5))


@pytest.mark.parametrize("size", [1, 2, 3, 29, 100, 93_431])
def test_a_random_order_holds_each_place_once_and_changes_with_the_key(size):
    ids = torch.arange(size)
    orders = [hashing.permuted(hashing.key(7, step), ids, size) for step in range(2)]
    for order in orders:
        assert torch.equal(order.sort().values, ids)
    assert size < 29 or not torch.equal(*orders)


def test_a_place_does_not_depend_on_who_else_asks():
    whole = hashing.permuted(5, torch.arange(1000), 1000)
    assert torch.equal(hashing.permuted(5, torch.tensor([999, 3, 3]), 1000), whole[[999, 3, 3]])


def test_places_of_neighbours_are_unrelated():
    places = hashing.permuted(5, torch.arange(90_000), 90_000).double() / 90_000
    for apart in (1, 2, 300, 301):  # 300 is the base of a digit
        both = torch.stack((places[apart:], places[:-apart]))
        assert abs(torch.corrcoef(both)[0, 1]) < 5 / 90_000**0.5
