import json
from dataclasses import replace

import numpy as np
import pytest

from embedder.threshold import Threshold
from eval.bootstrap import Resampler
from eval.pairs.bin_file import PairSet
from eval.pairs.columns import PairColumns
from eval.pairs.groups import as_json, compare_groups, group_tables, spread_cells
from eval.pairs.judged import Judged, differences, judge
from eval.pairs.outcome import difference_table, differences_json
from eval.pairs.protocol import PairResult, evaluate_embeddings
from eval.pairs.threshold import find_threshold, measured_threshold


def judged(seed, shift=0.0, n=2_000, name="set", noise=0.0):
    """Half genuine; ``shift`` raises the scores of impostor pairs, ``noise`` blurs all."""
    rng = np.random.default_rng(seed)
    issame = np.arange(n) % 2 == 0
    scores = rng.normal(0, 0.1, n) + np.where(issame, 0.4, shift)
    scores += np.random.default_rng(7).normal(0, 1, n) * noise
    correct = (scores > 0.2) == issame
    tar = np.array(
        [np.nan, *(np.mean(scores[issame] > np.quantile(scores[~issame], 1 - f)) for f in (1e-3, 1e-2, 1e-1))]
    )
    result = PairResult(pairs=n, accuracy=correct.mean(), correct=correct, tar=tar)
    return Judged(name, result, issame, scores, Resampler(issame, draws=300, seed=seed), "", {})


def test_groups_stand_at_one_threshold():
    groups = {"even": judged(0), "odd": judged(1), "raised": judged(2, shift=0.1)}
    found = compare_groups(groups, 0.01)
    impostor = np.concatenate([group.scores[~group.issame] for group in groups.values()])
    assert found.threshold == find_threshold(impostor, 0.01)
    for row, group in zip(found.rows, groups.values(), strict=True):
        accepted = group.scores >= found.threshold
        assert row.values[1] == accepted[group.issame].mean()
        assert row.values[2] == accepted[~group.issame].mean()
        assert all(low <= value <= high for value, (low, high) in zip(row.values, row.intervals, strict=True))
    rates = [row.values[2] for row in found.rows]
    assert sum(rates) / 3 == pytest.approx(0.01, abs=1e-3)
    spread = found.spreads[2]
    assert spread.std == pytest.approx(np.std(rates))
    assert spread.std > spread.std_by_chance
    assert spread.ratio == (pytest.approx(max(rates) / min(rates)) if min(rates) else np.inf)
    assert "raised" in group_tables(found)[0].get_string()
    told = json.loads(json.dumps(as_json(found)))
    assert told["groups"]["raised"]["false_match_rate"]["value"] == rates[2]


def test_equal_groups_are_spread_by_chance_alone():
    beyond = 0
    for seed in range(20):
        found = compare_groups({str(i): judged(100 + 4 * seed + i) for i in range(4)}, 0.02)
        beyond += found.spreads[1].std > found.spreads[1].std_by_chance
    assert beyond <= 4


def test_the_rate_of_groups_is_one_that_they_resolve():
    groups = {"a": judged(0), "b": judged(1)}
    assert compare_groups(groups).rate == 1e-2  # of 2,000 impostor pairs, 10 at least
    with pytest.raises(ValueError, match="from two on, found a"):
        compare_groups({"a": judged(0)})


@pytest.mark.parametrize("rate", [0.01, 0.02, 0.5])
def test_a_threshold_accepts_at_most_the_rate(rate):
    scores = np.random.default_rng(0).integers(0, 700, 1_000) / 1_000  # many equal ones
    threshold = find_threshold(scores, rate)
    assert (scores >= threshold).mean() <= rate
    lower = scores[scores < threshold].max()
    assert (scores >= lower).mean() > rate


@pytest.mark.parametrize(
    ("impostor", "rate", "message"),
    [
        (np.linspace(0, 1, 3_000), 1e-3, r"needs 10,000 impostor pairs, .* there are 3,000: take 0\.00335 or higher"),
        (np.linspace(0, 1, 5), 1e-3, "there are 5: take a larger set"),
        (np.linspace(0, 1, 50), 1.0, "between 0 and 1, got 1"),
        (np.full(50, 0.3), 0.5, "they all score 0.3000"),
    ],
)
def test_a_threshold_that_cannot_be_told(impostor, rate, message):
    with pytest.raises(ValueError, match=message):
        find_threshold(impostor, rate)


def test_a_threshold_goes_through_its_file(tmp_path):
    one = judged(3, n=8_000)
    found = measured_threshold(one.issame, one.scores, one.resampler, 0.01, "abc", True, "BGR")
    assert found.color_order == "BGR"
    found.write(tmp_path / "run" / "threshold.json")
    assert Threshold.read(tmp_path / "run" / "threshold.json") == found
    assert found.false_match_rate == pytest.approx(0.01)
    low, high = found.false_match_rate_interval
    assert 0.005 < low < 0.01 < high < 0.02
    assert len(found.curve["scores"]) <= 200
    assert found.false_match_rate_at(found.threshold) == pytest.approx(found.false_match_rate)


def test_differences_are_drawn_together():
    first = judged(5)
    worse = replace(judged(5, noise=0.15), resampler=first.resampler)
    found = {row.figure: row for row in differences(first, worse)}
    assert set(found) == {"accuracy", "TAR at 0.01", "TAR at 0.1"}
    assert found["accuracy"].second < found["accuracy"].first
    assert found["accuracy"].interval[1] < 0
    same = differences(first, judged(5))
    assert all(row.interval == (0, 0) for row in same)


def test_groups_are_drawn_apart():
    """Two groups of the same pairs: drawn alike, they could never lie apart."""
    issame = np.tile(np.arange(100) % 2 == 0, 2)
    rng = np.random.default_rng(0)
    half_ND = rng.normal(size=(200, 8)).astype(np.float32)
    people = np.tile(np.arange(100) // 2, 2)
    columns = PairColumns(people, np.where(issame, people, people + 50), "", np.repeat(["a", "b"], 100))
    pairs = PairSet("set", [b""] * 400, issame, columns=columns)
    embeddings_ND = np.tile(half_ND, (2, 1))
    groups = judge("set", pairs, embeddings_ND, evaluate_embeddings(embeddings_ND, issame), 10).groups
    found = compare_groups(groups, 0.2)
    assert found.rows[0].values == found.rows[1].values
    assert found.rows[0].intervals != found.rows[1].intervals
    assert all(spread.std == 0 < spread.std_by_chance for spread in found.spreads)


def test_one_person_a_group_has_no_intervals():
    few = replace(
        judged(0), resampler=Resampler(judged(0).issame, np.zeros(2_000, int), np.ones(2_000, int), draws=300)
    )
    found = compare_groups({"few": few, "many": judged(1)}, 0.01)
    assert np.isnan(found.rows[0].intervals).all()
    assert np.isfinite(found.rows[1].intervals).all()
    assert [cells[-1] for cells in spread_cells(found)] == ["-"] * 3
    assert all(np.isnan(spread.std_interval).all() for spread in found.spreads)
    assert "NaN" not in json.dumps(as_json(found))
    told = differences(few, few)
    assert [row.figure for row in told] == ["accuracy"]
    assert "NaN" not in json.dumps(differences_json({"set": told}))
    assert difference_table({"set": told}, ["a", "b"]).rows[0][-2:] == ["-", "-"]
    measured = measured_threshold(few.issame, few.scores, few.resampler, 0.01, "abc", True)
    assert measured.false_match_rate_interval == (0, 1)
