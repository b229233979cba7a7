"""The division of a class in two, the limit from the data, and groups of pairs."""

import numpy as np
import pytest

from tools.parts.duplicate_checks import divide, groups_of, low_limit


def images(person, n, noise=0.5, d=64):
    rng = np.random.default_rng((person, n))
    rows = np.random.default_rng(person).normal(size=d) + noise * rng.normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("a", "b"), [(2, 2), (2, 9), (7, 3), (8, 8)])
def test_two_people_are_divided(a, b):
    rows = np.concatenate([images(1, a), images(2, b)])
    order = np.random.default_rng(0).permutation(a + b)
    two = divide(rows[order])
    assert two is not None
    assert {tuple(np.flatnonzero(two.is_second_n)), tuple(np.flatnonzero(~two.is_second_n))} == {
        tuple(np.flatnonzero(order < a)),
        tuple(np.flatnonzero(order >= a)),
    }
    cosines = rows @ rows.T
    assert two.between == pytest.approx(cosines[:a, a:].mean(), abs=1e-5)
    own = [cosines[:a, :a][np.triu_indices(a, 1)].mean(), cosines[a:, a:][np.triu_indices(b, 1)].mean()]
    assert two.within == pytest.approx(np.mean(own), abs=1e-5)
    assert two.between < 0.3 < 0.6 < two.within


def test_one_person_falls_into_groups_that_are_nearly_one():
    two = divide(images(1, 12))
    assert two is not None
    assert two.between > 0.85 * two.within


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_too_few_images_cannot_be_two_people(n):
    assert divide(images(1, n)) is None


def test_one_odd_picture_is_no_person_and_equal_ones_are_one():
    assert divide(np.concatenate([images(1, 6, 0.1), images(2, 1)])) is None
    assert divide(np.repeat(images(1, 1), 6, 0)) is None


def test_the_limit_ignores_what_lies_below():
    sound = np.random.default_rng(0).normal(0.8, 0.05, 1000)
    limit = low_limit(sound, 1.0)
    assert 0.8 - 4 * 0.05 < limit < 0.8 - 2.5 * 0.05
    assert low_limit(np.concatenate([sound, np.full(150, 0.2)]), 1.0) == pytest.approx(limit, abs=0.03)
    assert low_limit(sound, 10.0) > limit
    assert low_limit(sound[:19], 1.0) == -1.0


def test_pairs_are_linked_to_groups():
    assert groups_of([]) == []
    assert groups_of([(9, 4), (1, 2), (4, 7), (2, 1), (7, 9), (5, 6)]) == [[4, 7, 9], [1, 2], [5, 6]]
    assert groups_of((i, i + 1) for i in range(2000)) == [list(range(2001))]
