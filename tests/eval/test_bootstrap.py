import numpy as np
import pytest

from eval import bootstrap
from eval.bootstrap import (
    Resampler,
    bounded_fars,
    interval,
    linked_people,
    numbered,
    share_interval,
    tar_draws,
    tar_intervals,
)
from eval.roc import roc

pytestmark = pytest.mark.numeric


def made_pairs(rng, people, images, spread=0.35):
    """Every pair of images of people whose scores depend on both: labels, sides, scores and images' people."""
    of = np.repeat(np.arange(people), images)
    a, b = np.triu_indices(len(of), 1)
    first, second = of[a], of[b]
    same = first == second
    lamb = rng.normal(0, spread, people)  # some people are like everybody
    scores = (
        lamb[first] + lamb[second] + rng.normal(0, 1, len(a)) + 3.2 * same + same * rng.normal(0, 0.5, people)[first]
    )
    return same, first, second, scores


def test_counts_are_the_weighted_pairs():
    rng = np.random.default_rng(0)
    same, first, second, _ = made_pairs(rng, 12, 3)
    bins = rng.integers(0, 4, len(same))
    draws = Resampler(same, first * 7 - 3, second * 7 - 3, draws=6)
    (found,) = draws.counts(bins, n_bins=4)
    for draw, weights in enumerate(bootstrap.person_weights(12, 0, 6)):
        both = weights[first] + weights[second] - 1
        for b in range(4):
            own = bins == b
            assert found.genuine_RB[draw, b] == pytest.approx(weights[first][same & own].sum())
            assert found.impostor_RB[draw, b] == pytest.approx(both[~same & own].sum(), abs=1e-3)


def test_pairs_are_drawn_jointly_for_two_models():
    labels = np.arange(400) < 100
    rng = np.random.default_rng(1)
    bins = rng.integers(0, 3, 400)
    draws = Resampler(labels, draws=50)
    one, other = draws.counts(bins, (bins + 1) % 3, n_bins=3)
    np.testing.assert_array_equal(one.impostor_RB[:, [0, 1, 2]], other.impostor_RB[:, [1, 2, 0]])
    assert (one.genuine_RB.sum(axis=1) == 100).all()
    assert one.impostor_RB[:, 0].mean() == pytest.approx((bins[~labels] == 0).sum(), rel=0.05)


def test_few_impostor_pairs_a_person_are_drawn_by_themselves():
    n = 300
    labels = np.arange(n) < 100
    people = np.arange(n)
    sparse = Resampler(labels, people, np.where(labels, people, people + n))
    assert not sparse.impostor_by_people
    assert "by themselves" in sparse.method()
    same, first, second, _ = made_pairs(np.random.default_rng(0), 20, 2)
    assert Resampler(same, first, second).impostor_by_people
    assert "not known" in Resampler(labels).method()


def test_the_draws_repeat_and_centre_on_the_curve():
    same, first, second, scores = made_pairs(np.random.default_rng(3), 60, 4)
    fars = (1e-3, 1e-2, 1e-1)
    (found,) = tar_draws(Resampler(same, first, second, draws=300), [scores], fars)
    (again,) = tar_draws(Resampler(same, first, second, draws=300), [scores], fars)
    np.testing.assert_array_equal(found, again)
    curve = roc(same, scores)
    np.testing.assert_allclose(np.median(found, axis=0), [curve.tar_at(far) for far in fars], atol=0.02)
    below = 0.5 / np.count_nonzero(~same)
    assert set(tar_intervals(Resampler(same, first, second, draws=20), scores, (below, *fars))) == set(fars)


@pytest.mark.parametrize("by_people", [True, False])
def test_intervals_hold_the_truth_about_as_often_as_they_say(by_people):
    """60 sets of people; drawing pairs although people are shared holds it less often."""
    fars = (1e-2, 1e-1)
    truth_same, _, _, truth = made_pairs(np.random.default_rng(99), 1_000, 3)
    curve = roc(truth_same, truth)
    held = np.zeros(len(fars))
    for seed in range(60):
        same, first, second, scores = made_pairs(np.random.default_rng(seed), 60, 4)
        draws = Resampler(same, first, second, draws=200) if by_people else Resampler(same, draws=200)
        found = tar_intervals(draws, scores, fars)
        held += [found[far][0] <= curve.tar_at(far) <= found[far][1] for far in fars]
    share = held / 60
    assert (share >= 0.87).all() if by_people else (share < 0.87).any(), share


def test_no_error_seen_still_has_an_interval():
    assert share_interval(np.ones(10), 300) == pytest.approx((0.99, 1))
    assert share_interval(np.zeros(10), 300) == pytest.approx((0, 0.01))
    assert share_interval(np.linspace(0, 1, 1001), 5) == pytest.approx((0.025, 0.975))
    assert all(np.isnan(interval(np.array([1.0, np.inf]))))
    assert all(np.isnan(share_interval(np.ones(10), 4)))  # draws of so few people hardly differ
    assert interval(np.array([0.5, 0.5, np.nan])) == (0.5, 0.5)
    assert all(np.isnan(interval(np.array([0.5, np.nan, np.nan]))))


def test_one_person_alone_has_no_interval():
    labels = np.arange(400) < 200
    people = np.arange(400) % 100
    scores = np.random.default_rng(0).normal(size=400) + labels
    both = Resampler(labels, people, np.where(labels, people, (people + 7) % 100), draws=20)
    assert both.trials == (100, 100)
    assert set(tar_intervals(both, scores, [0.1])) == {0.1}
    first = np.where(labels, 0, people)
    one = Resampler(labels, first, np.where(labels, 0, (people + 7) % 100), draws=20)
    assert (one.trials, one.trials_together) == ((1, 100), 1)
    assert tar_intervals(one, scores, [0.1]) == {}


def test_draws_without_a_genuine_pair_are_skipped():
    people = np.arange(300)
    labels = np.r_[np.ones(5, bool), np.zeros(600, bool)]  # e^-5 of the draws hold none
    first = np.r_[people[:5], people, people]
    second = np.r_[people[:5], np.roll(people, 1), np.roll(people, 2)]
    scores = np.r_[np.full(5, 3.0), np.linspace(-1, 1, 600)]
    draws = Resampler(labels, first, second)
    (found,) = tar_draws(draws, [scores], [0.1])
    assert 0 < np.isnan(found).sum() < 50
    assert tar_intervals(draws, scores, [0.1]) == {0.1: pytest.approx((1 - 3 / 5, 1))}


def test_a_far_between_ties_far_apart_has_no_interval():
    labels = np.arange(2_000) < 1_000
    rng = np.random.default_rng(0)
    fine = rng.normal(size=2_000) + labels
    assert bounded_fars(Resampler(labels), (1e-3, 1e-2, 0.1), [fine]) == [1e-2, 0.1]
    coarse = np.where(labels, 1.0, -(np.arange(2_000) % 1_000 // 30))  # FARs 0.03, 0.06 and so on
    assert bounded_fars(Resampler(labels), (1e-2, 0.1), [coarse]) == [0.1]
    assert bounded_fars(Resampler(labels), (1e-2, 0.1), [fine, coarse]) == [0.1]
    assert bounded_fars(Resampler(labels), (1e-2, 0.1), [np.round(fine / 3)]) == []
    reached = np.where(labels, 1.0, np.where(np.arange(2_000) < 1_100, 0.5, 0.0))  # 100 impostor pairs, then all
    assert bounded_fars(Resampler(labels), (0.1, 0.2), [reached]) == [0.1]


def test_people_are_what_genuine_pairs_join():
    labels = np.array([1, 1, 0, 1, 0])
    first, second = linked_people(labels, np.array([10, 30, 30, 50, 70]), np.array([20, 20, 50, 60, 10]))
    assert first[0] == second[0] == first[1] == first[2] == second[4]
    assert first[3] == second[3] == second[2] != first[0]
    assert first[4] not in (first[0], first[3])
    # a long chain, and one whose numbers do not fit a table
    chain = np.arange(5_000)
    joined = linked_people(np.ones(5_000, int), chain, chain + 1)
    assert len(np.unique(joined)) == 1
    wide = np.array([0, 1 << 40])
    assert [side.tolist() for side in numbered(wide, wide[::-1])[:2]] == [[0, 1], [1, 0]]
