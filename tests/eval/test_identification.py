import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import identification, person_draws
from eval.identification import field_lines, identification_table, identify, mean_rates

pytestmark = pytest.mark.numeric


def test_contract(contracts):
    """Every number and word that the field's script printed for the recorded features."""
    recorded = np.load(contracts / "ijb_1n.npz")
    names = ("probe_features", "probe_subjects", "gallery_features", "gallery_subjects")
    result = identify(*(recorded[name] for name in names))
    printed = (contracts / "ijb_1n_printed.txt").read_text().splitlines()
    assert field_lines(result) == printed


def loop(probes, probe_subjects, gallery, gallery_subjects):
    """One probe and one gallery template at a time; ranks, rates and thresholds."""
    mates, places, others = [], [], []
    for probe, person in zip(probes, probe_subjects, strict=True):
        similarity = gallery @ probe
        same = gallery_subjects == person
        others += similarity[~same].tolist()
        if same.any():
            best = max(range(len(gallery)), key=lambda i: (same[i], similarity[i], -i))
            order = sorted(range(len(gallery)), key=lambda i: (-similarity[i], i))
            places.append(sum(not same[i] for i in order[: order.index(best)]))
            mates.append(similarity[best])
    ranks = {r: sum(place < r for place in places) / len(places) for r in (1, 5, 10)}
    tpir, threshold = {}, {}
    for fpir in (0.01, 0.1):
        k = math.ceil(len(probes) * fpir)
        largest = heapq.nlargest(k, others)
        threshold[fpir] = largest[k - 1] if len(largest) >= k else math.nan
        tpir[fpir] = sum(m > threshold[fpir] for m in mates) / len(mates) if len(largest) >= k else math.nan
    return ranks, tpir, threshold


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    probes=st.integers(1, 60),
    gallery=st.integers(1, 25),
    people=st.sampled_from([1, 5, 30]),
    levels=st.sampled_from([1, 3]),
    block=st.sampled_from([8, 200, 1 << 25]),
)
def test_equals_the_loop(seed, probes, gallery, people, levels, block):
    """Equal similarities, probes without a mate and persons with several templates included."""
    rng = np.random.default_rng(seed)
    features = rng.integers(-levels, levels + 1, (probes + gallery, 4)).astype(float)  # exact products: many ties
    subjects = rng.integers(0, people, probes + gallery)
    subjects[probes] = subjects[0]
    given_ = (features[:probes], subjects[:probes], features[probes:], subjects[probes:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identification, "_BYTES_PER_BLOCK", block)
        result = identify(*given_)
    ranks, tpir, threshold = loop(*given_)
    assert result.rank == ranks
    np.testing.assert_equal(result.threshold, threshold)
    np.testing.assert_equal(result.tpir, tpir)
    assert result.mated == np.isin(given_[1], given_[3]).sum()


def test_probes_without_a_mate_raise_the_threshold_alone():
    gallery = np.eye(3)
    probes = np.array([[1.0, 0.3, 0.0], [0.2, 0.9, 0.0], [0.5, 0.0, 0.4]])
    closed = identify(probes[:2], [0, 1], gallery, [0, 1, 2], fpirs=(0.5,))
    assert (closed.rank[1], closed.tpir, closed.threshold) == (1.0, {0.5: 1.0}, {0.5: 0.3})
    opened = identify(probes, [0, 1, 7], gallery, [0, 1, 2], fpirs=(0.3,))
    assert (opened.probes, opened.mated, opened.rank[1]) == (3, 2, 1.0)
    assert opened.threshold == {0.3: 0.5}


def test_without_impostors_there_is_no_threshold():
    result = identify(np.eye(2)[:1], [4], np.eye(2)[:1], [4])
    assert result.rank == {1: 1.0, 5: 1.0, 10: 1.0}
    assert all(math.isnan(x) for x in (*result.tpir.values(), *result.threshold.values()))


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="lengths differ: 2 probes of 1 subjects"):
        identify(np.eye(2), [1], np.eye(2), [1, 2])
    with pytest.raises(ValueError, match="none of 2 probes is of a person in the gallery of 2"):
        identify(np.eye(2), [1, 2], np.eye(2), [3, 4])


def test_table_has_each_gallery_and_their_mean():
    probes, gallery = np.eye(4), np.eye(4)
    results = {
        "G1": identify(probes, [0, 1, 2, 3], gallery, [0, 1, 2, 3]),
        "G2": identify(probes, [0, 1, 2, 3], gallery, [1, 0, 2, 3]),
        "G1+G2": identify(probes, [0, 1, 2, 3], gallery, [1, 0, 3, 2]),
    }
    assert mean_rates([results["G1"], results["G2"]])[0] == 0.75
    table = identification_table("net-IJBC", results)
    assert table.field_names == [
        *("Methods", "Gallery", "rank-1", "rank-5", "rank-10", "TPIR@FPIR=0.01", "TPIR@FPIR=0.1"),
    ]
    assert [row[:3] for row in table.rows] == [
        ["net-IJBC", "G1", "100.00"],
        ["net-IJBC", "G2", "50.00"],
        ["net-IJBC", "G1+G2", "0.00"],
        ["net-IJBC", "mean of G1 and G2", "75.00"],
    ]


def loop_precision(similarity, same):
    """Area under precision over recall, one gallery template after the other."""
    area, recall, precision, found = 0.0, 0.0, 1.0, 0
    for rank, place in enumerate(sorted(range(len(same)), key=lambda i: (-similarity[i], i)), 1):
        found += same[place]
        now = found / sum(same), found / rank
        area += (now[0] - recall) * (precision + now[1]) / 2
        recall, precision = now
    return area


@pytest.mark.parametrize("few", [0, 32])
def test_average_precision_equals_the_loop(monkeypatch, few):
    monkeypatch.setattr(identification, "_FEW_MATES", few)
    rng = np.random.default_rng(0)
    gallery = rng.integers(-2, 3, (30, 4)).astype(float)  # ties
    probes, subjects, owners = gallery[::3] + 0.0, np.arange(10) % 4, np.arange(30) % 5
    result = identify(probes, subjects, gallery, owners, precision=True)
    expected = [loop_precision(gallery @ p, owners == s) for p, s in zip(probes, subjects, strict=True)]
    assert result.mean_average_precision == pytest.approx(np.mean(expected))


def test_open_set_counts_probes_without_a_mate():
    rng = np.random.default_rng(1)
    gallery = np.eye(40)
    mated = gallery * rng.uniform(0.3, 1, (40, 1))
    others = rng.uniform(0, 0.2, (50, 40))
    others[:5, 0] = (0.9, 0.8, 0.7, 0.6, 0.5)
    subjects = np.r_[np.arange(40), 100 + np.arange(50)]
    result = identify(np.r_[mated, others], subjects, gallery, np.arange(40), fpirs=(0.001, 0.02, 0.2), draws=50)
    assert [point.fpir for point in result.open_set] == [0.02, 0.2]
    first, second = result.open_set
    assert first.threshold == 0.8  # one of 50, 0.9, is above it
    assert second.threshold == np.sort(others.max(axis=1))[-11]
    assert second.tpir == 1
    assert first.tpir == np.mean(mated.max(axis=1) > 0.8)
    assert second.interval == pytest.approx((1 - 3 / 40, 1))
    assert np.isnan(first.interval).all()  # draws of one alarm tell nothing
    assert first.non_mated_probes == 50


def open_set(person_of_others, draws=50):
    """FPIR 0.1 with 100 probes without a mate, at 0.6, 0.595 and so on, so that the threshold is 0.55."""
    scores = np.r_[np.full(8, 0.9), np.full(4, 0.552), np.full(5, 0.8), np.full(3, 0.1)]
    mated = np.diag(scores)
    mated[12:17, 0] = 0.9  # somebody else comes before those of 0.8
    others = np.zeros((100, 20))
    others[:, 1] = np.linspace(0.6, 0.105, 100)
    subjects = np.r_[np.arange(20), 100 + person_of_others]
    (point,) = identify(np.r_[mated, others], subjects, np.eye(20), np.arange(20), fpirs=(0.1,), draws=draws).open_set
    return point


def test_a_mate_counts_in_an_open_set_where_it_comes_first_above_the_threshold(monkeypatch):
    def everybody_once(people, start, stop):
        return np.ones((stop - start, people), np.float32)

    monkeypatch.setattr(person_draws, "person_weights", everybody_once)
    found = open_set(np.arange(100), draws=20)
    assert found.threshold == pytest.approx(0.55)
    assert found.tpir == 12 / 20
    assert found.interval == (12 / 20, 12 / 20)  # a draw of everybody has the same threshold


def test_draws_without_anybody_who_has_no_mate_are_skipped(monkeypatch):
    def weights(people, start, stop):
        out = np.ones((stop - start, people), np.float32)
        out[::3, 20:] = 0  # in a third of the draws
        return out

    monkeypatch.setattr(person_draws, "person_weights", weights)
    assert open_set(np.arange(100), draws=30).interval == (12 / 20, 12 / 20)


def test_similarities_counted_have_no_interval_where_they_are_few():
    probes, people = np.eye(40) + 0.01, np.arange(40)
    result = identify(probes, people, np.eye(40), people, fpirs=(0.1, 0.5), draws=20)
    assert np.isnan(result.intervals()[-3]).all()  # 4 similarities
    assert np.isfinite(result.intervals()[-2]).all()


def test_few_mated_people_have_no_interval():
    result = identify(np.eye(4), np.arange(4), np.eye(4), np.arange(4), draws=20)
    assert np.isnan(result.intervals()).all()


def test_an_open_set_has_no_interval_of_few_people_without_a_mate():
    assert np.isnan(open_set(np.arange(100) // 12).interval).all()  # 9 people
    assert np.isfinite(open_set(np.arange(100) // 10).interval).all()
    assert np.isnan(open_set(np.arange(100), draws=0).interval).all()


def test_draws_centre_on_the_rates_and_repeat():
    rng = np.random.default_rng(2)
    people = np.arange(80)
    gallery = rng.normal(size=(80, 8))
    probes = np.repeat(gallery, 3, axis=0) + rng.normal(0, 1.0, (240, 8))
    gallery, probes = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (gallery, probes))
    given_ = (probes, np.repeat(people, 3), gallery, people)
    again, result = (identify(*given_, precision=True, fpirs=(0.05, 0.1), draws=300) for _ in range(2))
    np.testing.assert_array_equal(result.draws, again.draws)
    rates = [*result.rank.values(), *result.tpir.values(), result.mean_average_precision]
    np.testing.assert_allclose(np.median(result.draws, axis=0), rates, atol=0.03)
    for rate, (low, high) in zip(rates, result.intervals(), strict=True):
        assert low <= rate <= high
        assert high - low < 0.3
