import numpy as np
import pytest

from eval import templates
from eval.templates import pair_scores, template_features


@pytest.fixture
def ijb_11(contracts):
    return np.load(contracts / "ijb_11.npz")


def test_contract_from_image_features_to_scores(ijb_11):
    """What the recorded features become; tests/test_eval_ijbc.py runs the whole way from photo to TAR."""
    straight, mirrored = np.split(ijb_11["image_features"], 2, axis=1)
    unique, features = template_features(
        straight + mirrored,
        ijb_11["detector_scores"],
        ijb_11["template_ids"],
        ijb_11["media_ids"],
    )
    np.testing.assert_array_equal(unique, ijb_11["unique_templates"])
    np.testing.assert_allclose(features, ijb_11["template_features"], rtol=0, atol=1e-6)
    scores = pair_scores(features, unique, ijb_11["pair_template_1"], ijb_11["pair_template_2"])
    np.testing.assert_allclose(scores, ijb_11["pair_scores"], rtol=0, atol=1e-6)


def loop_templates(features, scores, template_ids, media_ids):
    rows = []
    for template in np.unique(template_ids):
        total = np.zeros(features.shape[1])
        for media in np.unique(media_ids[template_ids == template]):
            mine = (template_ids == template) & (media_ids == media)
            total += (features[mine].astype(np.float64) * scores[mine, None]).mean(0)
        rows.append(total / np.linalg.norm(total))
    return np.stack(rows)


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 10_000])
def test_equals_the_loop_for_any_chunk(monkeypatch, chunk):
    monkeypatch.setattr(templates, "_IMAGES_PER_CHUNK", chunk)
    monkeypatch.setattr(templates, "_PAIRS_PER_CHUNK", chunk)
    rng = np.random.default_rng(3)
    features = rng.standard_normal((120, 6)).astype(np.float32)
    scores = rng.uniform(0.1, 1, 120)
    template_ids = rng.integers(0, 9, 120) * 1000  # ids with gaps
    media_ids = rng.integers(0, 5, 120)  # the same media number in many templates
    unique, out = template_features(features, scores, template_ids, media_ids)
    reference = loop_templates(features, scores, template_ids, media_ids)
    np.testing.assert_allclose(out, reference, rtol=0, atol=1e-12)
    first, second = rng.choice(unique, 50), rng.choice(unique, 50)
    wanted = [reference[unique == a][0] @ reference[unique == b][0] for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(pair_scores(out, unique, first, second), wanted, rtol=0, atol=1e-12)


def test_one_image_and_a_zero_template():
    unique, out = template_features(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32), [0.5, 1.0], [7, 2], [0, 0])
    assert unique.tolist() == [2, 7]
    np.testing.assert_allclose(out, [[0, 0], [0.6, 0.8]])


def test_wrong_input_is_named():
    features = np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match="3 media ids"):
        template_features(features, [1, 1], [1, 1], [1, 1, 1])
    with pytest.raises(ValueError, match="no images"):
        template_features(features[:0], [], [], [])
    unique, out = template_features(features, [1, 1], [1, 2], [1, 1])
    with pytest.raises(ValueError, match="template 9"):
        pair_scores(out, unique, [1, 2], [2, 9])
    with pytest.raises(ValueError, match="lengths differ"):
        pair_scores(out, unique, [1, 2], [2])
