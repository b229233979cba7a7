import numpy as np
import pytest

from eval.report.figures import (
    FacePair,
    draw_sheet,
    far_name,
    join_faces,
    plot_det,
    plot_roc_points,
    plot_score_histogram,
)
from eval.report.operating import equal_error_rate, operating_points, score_histogram
from eval.roc import roc


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    labels = np.arange(3000) % 5 == 0
    scores = rng.normal(0.4 * labels, 0.12)
    curve = roc(labels, scores)
    return scores, labels, curve, operating_points(curve, scores, labels)


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    ("far", "name"), [(1e-6, "1e-6"), (1e-4, "1e-4"), (0.05, "5e-2"), (0.1, "1e-1"), (1e-10, "1e-10")]
)
def test_far_name(far, name):
    assert far_name(far) == name


def test_roc_names_its_points(made):
    _, _, curve, points = made
    axes = plot_roc_points("net", curve, points).axes[0]
    expected = ["not\nresolved"] * 3 + [f"{100 * curve.tar_at(far):.2f}" for far in (1e-3, 1e-2, 1e-1)]
    assert [text for text in texts(axes) if "impostor" not in text] == expected
    places = [text.xy for text in axes.texts if "impostor" not in text.get_text()]
    assert places == [(point.far, point.tar) for point in points]


def test_the_note_on_small_sets_makes_room_for_a_high_curve():
    for scores, height in (([0.9, 0.8, 0.2, 0.1], 0.02), ([0.1, 0.9, 0.2, 0.85], 0.98)):
        labels = np.array([1, 1, 0, 0])
        curve = roc(labels, scores)
        axes = plot_roc_points("net", curve, operating_points(curve, np.array(scores), labels)).axes[0]
        assert axes.texts[0].get_text() == "less than one of 2 impostor pairs"
        assert axes.texts[0].get_position() == (0.015, height)


def test_det_is_the_roc_by_its_errors(made):
    _, _, curve, points = made
    axes = plot_det("net", curve, points).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    far, reject = axes.lines[0].get_data()
    np.testing.assert_array_equal(far[1:], curve.far[curve.far >= 1e-6])
    np.testing.assert_allclose(reject[1:], np.maximum(1 - curve.tar[curve.far >= 1e-6], 0.5 / curve.genuine))
    marks = [(line.get_xdata()[0], line.get_markerfacecolor()) for line in axes.lines if line.get_marker() == "o"]
    assert [far for far, _ in marks] == [point.far for point in points]
    assert [colour == "white" for _, colour in marks] == [not point.resolved for point in points]


@pytest.mark.parametrize("apart", [0.02, 0.4, 0.9, 3])  # equal error rates above and below all FARs, and none
def test_the_equal_error_rate_lies_inside_the_picture_or_is_not_named(apart):
    rng = np.random.default_rng(0)
    labels = np.arange(30_000) % 2 == 0
    scores = rng.normal(apart * labels, 0.12)
    curve = roc(labels, scores)
    axes = plot_det("net", curve, operating_points(curve, scores, labels, [1e-3, 1e-2])).axes[0]
    rate = equal_error_rate(curve)
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named == (["net", "equal error rate"] if rate else ["net"])
    assert (rate == 0) == (apart == 3)
    if rate:
        assert axes.get_xlim()[0] < rate < axes.get_xlim()[1]
        assert axes.get_ylim()[0] < rate < axes.get_ylim()[1]


def test_histogram_draws_the_thresholds_that_are_resolved(made):
    scores, labels, _, points = made
    edges, genuine, impostor = score_histogram(scores, labels)
    upper, lower = plot_score_histogram("net", edges, genuine, impostor, points).axes
    resolved = [point for point in points if point.resolved]
    assert len(resolved) == 3
    for axes in (upper, lower):
        assert [line.get_xdata()[0] for line in axes.lines] == [point.threshold for point in resolved]
    assert sorted(texts(upper)) == ["1e-1", "1e-2", "1e-3"]
    assert lower.get_yscale() == "log"


def test_labels_of_near_thresholds_keep_apart(made):
    scores, labels, curve, _ = made
    points = operating_points(curve, scores, labels, [0.02, 0.021, 0.022, 0.023])
    edges, genuine, impostor = score_histogram(scores, labels)
    axes = plot_score_histogram("net", edges, genuine, impostor, points).axes[0]
    places = np.sort([text.get_position()[0] for text in axes.texts])
    assert np.diff(places).min() > 0.02 * (edges[-1] - edges[0])


def test_faces_side_by_side():
    faces = {1: np.full((112, 112, 3), 10, np.uint8), 2: np.full((224, 224, 3), 20, np.uint8)}
    image = join_faces(1, 2, faces.__getitem__)
    assert image.shape == (112, 228, 3)
    assert (image[:, :112] == 10).all()
    assert (image[:, 116:] == 20).all()

    def broken(_):
        raise ValueError("not a decodable image")

    assert (join_faces(1, 2, broken)[:, :112] == 128).all()


def test_sheet_marks_what_is_wrong():
    image = np.zeros((112, 228, 3), np.uint8)
    pairs = [FacePair(image, 0.9 - i / 10, i, i + 50, i < 2) for i in range(5)]
    axes = draw_sheet("title", pairs, "template").axes[0]
    colours = {text.get_text(): text.get_color() for text in axes.texts}
    assert {"title", "0.9000", "0.5000", "templates 4 and 54"} <= colours.keys()
    assert colours["0.9000"] == colours["0.8000"] != colours["0.7000"]
