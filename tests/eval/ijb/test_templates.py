import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import ijb_reference
from eval.ijb import templates
from eval.ijb.templates import FeatureMode, image_features, pair_scores, pool_templates

pytestmark = pytest.mark.numeric


@pytest.fixture
def ijb_11(contracts):
    return np.load(contracts / "ijb_11.npz")


def template_features(features_ND, template_ids, media_ids):
    return pool_templates(lambda start, end: features_ND[start:end], template_ids, media_ids)


def test_contract_from_image_features_to_scores(ijb_11):
    """What the recorded features become; tests/test_eval_ijbc.py runs the whole way from photo to TAR."""
    features = image_features(ijb_11["image_features"], ijb_11["detector_scores"].astype(np.float32), FeatureMode())
    unique, pooled = template_features(features, ijb_11["template_ids"], ijb_11["media_ids"])
    np.testing.assert_array_equal(unique, ijb_11["unique_templates"])
    np.testing.assert_allclose(pooled, ijb_11["template_features"], rtol=0, atol=1e-15)
    scores = pair_scores(pooled, unique, ijb_11["pair_template_1"], ijb_11["pair_template_2"])
    np.testing.assert_allclose(scores, ijb_11["pair_scores"], rtol=0, atol=1e-15)


def random_tree(seed, images=150, size=6, template_count=11):
    rng = np.random.default_rng(seed)
    halves = rng.standard_normal((images, 2 * size)).astype(np.float32)
    copies, of = rng.integers(0, images, (2, images // 4))
    halves[copies] = halves[of]  # the same photo twice
    scores = rng.choice(np.float32([0.25, 0.5, 0.99, 0.7123456]), images)
    template_ids = rng.integers(0, template_count, images) * 1000  # ids with gaps
    media_ids = rng.integers(0, rng.integers(1, 12), images)  # the same media number in many templates
    return halves, scores, template_ids, media_ids


def loop_templates(features, template_ids, media_ids):
    """In float64, which says whether the sums mean what they should."""
    rows = []
    for template in np.unique(template_ids):
        total = np.zeros(features.shape[1])
        for media in np.unique(media_ids[template_ids == template]):
            total += features[(template_ids == template) & (media_ids == media)].astype(np.float64).mean(0)
        rows.append(total / np.linalg.norm(total))
    return np.stack(rows)


@pytest.mark.parametrize("mode", [FeatureMode(*[bool(i >> k & 1) for k in range(3)]) for i in range(8)], ids=str)
def test_each_mode_equals_its_formula(mode):
    halves, scores, _, _ = random_tree(0)
    straight, mirrored = np.split(halves.astype(np.float64), 2, axis=1)
    wanted = straight + mirrored if mode.flip else straight
    if not mode.norm_score:
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    if mode.detector_score:
        wanted *= scores[:, None]
    out = image_features(halves, scores, mode)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
    for name, word in (("flip", "mirrored"), ("norm_score", "norm used"), ("detector_score", "detector score used")):
        assert (word in str(mode)) is getattr(mode, name)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 200),
    size=st.sampled_from([2, 7, 16, 130]),
    template_count=st.sampled_from([1, 3, 40, 500]),
    block=st.sampled_from([1, 2, 7, 64, 10_000]),
    switches=st.tuples(*[st.booleans()] * 3),
    in_order=st.booleans(),
)
def test_equals_the_field_bit_for_bit(seed, images, size, template_count, block, switches, in_order):
    """On any tree: single images, long media, the same photo in several templates, any mode, any block."""
    halves, det, template_ids, media_ids = random_tree(seed, images, size, template_count)
    if in_order:
        template_ids.sort()
    features = ijb_reference.image_features(halves, det, *switches)
    pooled, unique = ijb_reference.template_features(features, template_ids, media_ids)
    rng = np.random.default_rng(seed)
    first, second = rng.choice(unique, 50), rng.choice(unique, 50)
    scores = ijb_reference.pair_scores(pooled, unique, first, second)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(templates, "_IMAGES_PER_BLOCK", block)
        patch.setattr(templates, "_PAIRS_PER_BLOCK", block)
        our_features = image_features(halves, det, FeatureMode(*switches))
        our_unique, our_pooled = template_features(our_features, template_ids, media_ids)
        our_scores = pair_scores(our_pooled, our_unique, first, second)
    np.testing.assert_array_equal(our_features, features)
    np.testing.assert_array_equal(our_unique, unique)
    np.testing.assert_array_equal(our_pooled, pooled)
    np.testing.assert_array_equal(our_scores, scores)
    np.testing.assert_allclose(our_pooled, loop_templates(features, template_ids, media_ids), atol=2e-5)


def use_products(patch, rows_per_product):
    patch.setattr(templates, "_FEW_PAIRS", 0)
    patch.setattr(templates, "_PRODUCTS_PER_PAIR", 10**9)
    patch.setattr(templates, "_ROWS_PER_PRODUCT", rows_per_product)


@pytest.mark.parametrize("rows_per_product", [1, 3, 256])
@pytest.mark.parametrize("kind", ["sorted, apart", "shuffled, apart", "any"])
def test_products_give_the_scores_of_single_pairs(monkeypatch, kind, rows_per_product):
    rng = np.random.default_rng(1)
    features = rng.standard_normal((50, 130))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    unique = np.cumsum(rng.integers(1, 5, 50))
    first = unique[rng.integers(0, 50 if kind == "any" else 20, 3000)]
    second = unique[rng.integers(0 if kind == "any" else 20, 50, 3000)]
    if kind == "sorted, apart":
        first.sort()
    wanted = pair_scores(features, unique, first, second)
    use_products(monkeypatch, rows_per_product)
    found = pair_scores(features, unique, first, second)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-14)
    assert (found != wanted).any()  # it did go the other way


@pytest.mark.parametrize("products", [False, True])
def test_equal_pairs_tie(monkeypatch, products):
    """A pair's score depends on its two templates alone, whatever their order and place."""
    if products:
        use_products(monkeypatch, 7)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, 512))
    features[20:] = features[:20]  # the same person's templates twice
    unique = np.arange(40)
    first, second = rng.integers(0, 40, 2000), rng.integers(0, 40, 2000)
    scores = pair_scores(features, unique, first, second)
    np.testing.assert_array_equal(scores, pair_scores(features, unique, second, first))
    np.testing.assert_array_equal(scores, pair_scores(features, unique, first % 20, second % 20))
    order = rng.permutation(2000)
    np.testing.assert_array_equal(scores[order], pair_scores(features, unique, first[order], second[order]))


def test_one_image_and_a_zero_template():
    unique, out = template_features(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32), [7, 2], [0, 0])
    assert unique.tolist() == [2, 7]
    np.testing.assert_allclose(out, [[0, 0], [0.6, 0.8]])
    zero = image_features(np.zeros((1, 4), np.float32), np.ones(1, np.float32), FeatureMode(norm_score=False))
    assert zero.tolist() == [[0, 0]]


def test_templates_in_order_are_read_in_pieces(monkeypatch):
    """Memory stays at a few blocks where templates lie together, and all is read once where they are scattered."""
    monkeypatch.setattr(templates, "_IMAGES_PER_BLOCK", 10)
    halves, _, template_ids, media_ids = random_tree(4)
    features, longest = halves[:, :6], []

    def read(start, end):
        longest.append(end - start)
        return features[start:end]

    for ids, most in ((np.sort(template_ids), np.bincount(template_ids).max()), (template_ids, len(features))):
        longest.clear()
        _, pooled = templates.pool_templates(read, ids, media_ids)
        assert max(longest) == most
        np.testing.assert_array_equal(pooled, template_features(features, ids, media_ids)[1])


def test_template_ids_too_far_apart_for_a_table():
    unique = np.array([-5, 3, 1 << 40])
    assert templates.template_rows(unique, [1 << 40, -5, 3, 3]).tolist() == [2, 0, 1, 1]
    assert templates.template_rows(unique[:2], [3, -5]).tolist() == [1, 0]
    for ids in ([4], [-6], [1 << 41]):
        for some in (unique, unique[:2]):
            with pytest.raises(ValueError, match=f"template {ids[0]} is in a list"):
                templates.template_rows(some, ids)


def test_wrong_input_is_named():
    features = np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match="3 media ids"):
        template_features(features, [1, 1], [1, 1, 1])
    with pytest.raises(ValueError, match="no images"):
        template_features(features[:0], [], [])
    unique, out = template_features(features, [1, 2], [1, 1])
    with pytest.raises(ValueError, match="template 9"):
        pair_scores(out, unique, [1, 2], [2, 9])
    with pytest.raises(ValueError, match="lengths differ"):
        pair_scores(out, unique, [1, 2], [2])
