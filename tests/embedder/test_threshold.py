import dataclasses
import json

import pytest

from embedder.threshold import Threshold

CURVE = {
    "scores": [-0.1, 0.2, 0.5],
    "false_match_rate": [0.6, 0.01, 0.0],
    "true_match_rate": [1.0, 0.9, 0.4],
}
THRESHOLD = Threshold(0.31, 0.001, (0.0004, 0.002), 0.93, 3000, 300_000, "ab12", True, CURVE)


def test_a_threshold_is_read_as_it_was_written(tmp_path):
    THRESHOLD.write(tmp_path / "new" / "threshold.json")
    assert Threshold.read(tmp_path / "new" / "threshold.json") == THRESHOLD
    keys = "threshold false_match_rate false_match_rate_interval true_match_rate genuine_pairs impostor_pairs model"
    assert list(json.loads((tmp_path / "new" / "threshold.json").read_text())) == [
        *keys.split(),
        "flip",
        "curve",
        "color_order",
    ]


def test_an_older_file_was_measured_with_red_first(tmp_path):
    older = {key: value for key, value in dataclasses.asdict(THRESHOLD).items() if key != "color_order"}
    (tmp_path / "t.json").write_text(json.dumps(older))
    assert Threshold.read(tmp_path / "t.json") == THRESHOLD


def test_the_rate_of_a_score_is_that_of_the_points_below_it():
    assert [THRESHOLD.false_match_rate_at(x) for x in (-0.2, -0.1, 0.19, 0.2, 0.7)] == [None, 0.6, 0.6, 0.01, 0.0]
    assert dataclasses.replace(THRESHOLD, curve={}).false_match_rate_at(0.3) is None


def test_what_a_stranger_meets_in_a_gallery_is_a_number_in_words_of_few_digits():
    assert THRESHOLD.in_gallery(1_234_567).endswith("a stranger's comparisons with 1,234,567 faces, 1,200 on average")
    everybody = dataclasses.replace(THRESHOLD, false_match_rate=1.0, false_match_rate_interval=(0.997, 1.0))
    assert "; 100 % of pairs of two people reach the threshold (95 %: 100 to 100 %)" in everybody.verdict(0.5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("threshold", "0.3", "threshold is '0.3', expected a number of -1 to 1"),
        ("false_match_rate", 1.5, "expected a number of 0 to 1"),
        ("true_match_rate", True, "true_match_rate is 'True'"),
        ("false_match_rate_interval", [0.1], "holds 1 numbers, expected"),
        ("impostor_pairs", float("inf"), "impostor_pairs is 'inf'"),
        ("model", 7, "model is '7', expected a text"),
        ("flip", 1, "flip is '1', expected a bool"),
        ("color_order", "GBR", "color_order is 'GBR', expected RGB or BGR"),
        ("curve", {"scores": [0.1]}, "curve must be empty or hold the lists"),
        ("curve", {**CURVE, "scores": [0.2, 0.1, 0.3]}, "scores ascending"),
        ("curve", {name: [0.1] * 201 for name in CURVE}, "200 at most"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, key, value, message):
    (tmp_path / "t.json").write_text(json.dumps({**dataclasses.asdict(THRESHOLD), key: value}))
    with pytest.raises(ValueError, match=message) as caught:
        Threshold.read(tmp_path / "t.json")
    assert str(caught.value).startswith(str(tmp_path / "t.json"))


def test_what_is_no_threshold_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*t\.json"):
        Threshold.read(tmp_path / "t.json")
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        Threshold.read(tmp_path / "t.json")
    (tmp_path / "t.json").write_text('{"threshold": 0.3}')
    with pytest.raises(ValueError, match="missing false_match_rate, "):
        Threshold.read(tmp_path / "t.json")
