from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from embedder.batches import embed_batches
from embedder.embedder import LengthMeter
from eval.pairs.bin_file import PairSet, load_bin
from eval.pairs.protocol import (
    FARS,
    PairResult,
    evaluate_embeddings,
    evaluate_pairs,
    pair_loader,
    thin_out,
    verify,
)
from pair_stub import Stub, embed_images, face, made_set, png
from ranks import run_ranks
from utils.decode import decode_rgb

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")


def loop_reference(embeddings, issame, folds):
    n = len(issame)
    distance = [((embeddings[2 * i] - embeddings[2 * i + 1]) ** 2).sum() for i in range(n)]
    thresholds = np.arange(0, 4, 0.01)
    accuracies, tprs, fprs = [], [], []
    for test in np.array_split(np.arange(n), folds):
        best, chosen = -1, None
        for threshold in thresholds:
            right = sum((distance[i] < threshold) == issame[i] for i in range(n) if i not in test)
            if right > best:
                best, chosen = right, threshold
        accuracies.append(np.mean([(distance[i] < chosen) == issame[i] for i in test]))
        genuine, impostor = [i for i in test if issame[i]], [i for i in test if not issame[i]]
        tprs.append([sum(distance[i] < t for i in genuine) / max(len(genuine), 1) for t in thresholds])
        fprs.append([sum(distance[i] < t for i in impostor) / max(len(impostor), 1) for t in thresholds])
    return np.array(accuracies), np.mean(tprs, 0), np.mean(fprs, 0)


def random_pairs(n, seed, dim=6):
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((2 * n, dim))
    issame = rng.integers(0, 2, n).astype(bool)
    embeddings[1::2][issame] += 1.5 * embeddings[0::2][issame]
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), issame


def test_contract(contracts):
    recorded = np.load(contracts / "pair_verification.npz")
    result = evaluate_pairs(recorded["embeddings"], recorded["issame"])
    np.testing.assert_allclose(result.accuracy_per_fold, recorded["accuracy_per_fold"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.tpr, recorded["tpr"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.fpr, recorded["fpr"], rtol=0, atol=1e-12)
    assert result.accuracy == pytest.approx(recorded["accuracy_per_fold"].mean())
    assert result.accuracy_std == pytest.approx(recorded["accuracy_per_fold"].std())
    assert result.message == ""
    assert result.hint() == ""


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 23), st.integers(2, 10), st.integers(0, 10**6))
def test_equals_the_loop(n, folds, seed):
    embeddings, issame = random_pairs(n, seed)
    result = evaluate_pairs(embeddings, issame, folds)
    accuracy, tpr, fpr = loop_reference(embeddings, issame, min(folds, n))
    np.testing.assert_allclose(result.accuracy_per_fold, accuracy, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.tpr, tpr, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.fpr, fpr, rtol=0, atol=1e-12)


def test_cosines_and_spread():
    embeddings, issame = random_pairs(40, 1)
    result = evaluate_pairs(embeddings, issame)
    cosines = (embeddings[0::2] * embeddings[1::2]).sum(1)
    assert result.genuine_cosine == pytest.approx(cosines[issame].mean())
    assert result.impostor_cosine == pytest.approx(cosines[~issame].mean())
    assert result.spread == pytest.approx(embeddings.std(0).mean())


def test_tar_is_that_of_the_nearest_point_and_missing_below_one_impostor_pair():
    rng = np.random.default_rng(3)
    issame = np.arange(1200) % 2 == 0  # 600 impostor pairs: 0.001 is less than one
    angle = np.where(issame, rng.uniform(0, 1.6, 1200), rng.uniform(0.8, 3.1, 1200))
    embeddings = np.empty((2400, 2))
    embeddings[0::2] = (1, 0)
    embeddings[1::2] = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    tar = evaluate_pairs(embeddings, issame).tar
    assert np.isnan(tar).tolist() == [True, True, False, False]
    impostor = np.sort(np.cos(angle[~issame]))[::-1]
    for far, found in zip(FARS[2:], tar[2:], strict=True):
        accepted = round(far * 600)
        # The curve has a point where the genuine pairs above the next impostor pair have come in.
        best = (np.cos(angle[issame]) > impostor[accepted]).mean()
        assert found == pytest.approx(best, abs=1e-12)


def test_repeated_distances_are_no_trouble():
    embeddings = np.tile([[1.0, 0.0], [0.6, 0.8]], (40, 1))  # every pair at the same distance
    result = evaluate_pairs(embeddings, np.arange(40) % 2 == 0)
    assert result.accuracy == 0.5
    assert result.genuine_cosine == pytest.approx(result.impostor_cosine)
    assert result.tar[3] in (0, 1)
    assert "look alike" in result.hint()


def test_evaluate_embeddings_brings_them_to_length_one():
    embeddings, issame = random_pairs(40, 1)
    scaled = (embeddings * np.linspace(1, 9, 80)[:, None]).astype(np.float32)
    result, reference = evaluate_embeddings(scaled, issame), evaluate_pairs(embeddings, issame)
    assert result.accuracy == reference.accuracy
    assert result.genuine_cosine == pytest.approx(reference.genuine_cosine, abs=1e-6)
    assert result.norm == pytest.approx(5, rel=1e-6)
    scaled[7] = np.nan
    assert evaluate_embeddings(scaled, issame).non_finite == 1
    zeros = evaluate_embeddings(np.zeros((80, 6), np.float32), issame)
    assert (zeros.norm, zeros.spread, zeros.non_finite) == (0, 0, 0)
    assert "nearly the same" in zeros.hint()
    assert evaluate_embeddings(np.empty((0, 0), np.float32), issame[:0]).message == "no pairs"


@given(st.integers(0, 30), st.integers(0, 30), st.integers(2, 40), st.integers(0, 99))
def test_sampled_pairs(genuine, impostor, n, seed):
    issame = np.random.default_rng(seed).permutation([True] * genuine + [False] * impostor).astype(bool)
    whole = PairSet("made", [b"%d" % i for i in range(2 * len(issame))], issame)
    some = thin_out(whole, n)
    total = len(issame)
    assert len(some.issame) == min(n, total)
    if total <= n:
        assert some is whole
        return
    index = [int(image) for image in some.encoded]
    assert index[0::2] == [i - 1 for i in index[1::2]]
    assert len(set(index)) == len(index)
    assert index == sorted(index)
    np.testing.assert_array_equal(some.issame, issame[np.array(index[0::2]) // 2])
    assert some.issame.sum() >= min(genuine, n // 2)
    assert (~some.issame).sum() >= min(impostor, n // 2)


def test_fewer_pairs_than_folds():
    embeddings, issame = random_pairs(4, 0)
    result = evaluate_pairs(embeddings, issame, folds=10)
    assert len(result.accuracy_per_fold) == 4
    assert "4 pairs for 10 folds" in result.message


@pytest.mark.parametrize("n", [0, 1])
def test_no_pair_or_one(n):
    embeddings, issame = random_pairs(n, 0)
    result = evaluate_pairs(embeddings, issame)
    assert np.isnan(result.accuracy)
    assert "pair" in result.message


@pytest.mark.parametrize("same", [True, False])
def test_one_kind_of_pair(same):
    embeddings, _ = random_pairs(12, 0)
    result = evaluate_pairs(embeddings, np.full(12, same))
    assert np.isnan(result.impostor_cosine if same else result.genuine_cosine)
    assert result.accuracy > 0.5
    assert result.notes() == [
        f"all pairs are {'genuine' if same else 'impostor'}: accuracy alone says nothing, and there is no TAR"
    ]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_embeddings_are_counted(bad):
    embeddings, issame = random_pairs(20, 0)
    embeddings[[3, 8, 9], 2] = bad
    result = evaluate_pairs(embeddings, issame)
    assert result.non_finite == 3
    assert np.isnan(result.accuracy)
    assert np.isnan(result.tpr).all()
    assert np.isfinite(result.genuine_cosine)
    assert "3 of 40 embeddings" in result.message
    assert "3 embeddings" in result.hint()


def test_all_non_finite():
    result = evaluate_pairs(np.full((20, 4), np.nan), np.arange(10) % 2 == 0)
    assert result.non_finite == 20
    assert np.isnan(result.spread)


def test_hints():
    issame = np.arange(20) % 2 == 0
    rng = np.random.default_rng(0)
    same = np.ones((40, 8)) / np.sqrt(8)
    assert "nearly the same" in evaluate_pairs(same, issame).hint()
    assert "nearly the same" in evaluate_pairs(same, np.ones(20, bool)).hint()
    noise = rng.standard_normal((4000, 64))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    assert "look alike" in evaluate_pairs(noise, np.arange(2000) % 2 == 0).hint()
    embeddings, issame = random_pairs(40, 1)
    assert evaluate_pairs(embeddings, issame).hint() == ""
    assert "inverted" in evaluate_pairs(embeddings, ~issame).hint()
    assert evaluate_pairs(embeddings, issame).notes() == []
    few = evaluate_pairs(embeddings[:8], ~issame[:4])
    assert few.notes() == [few.message, few.hint()]


def test_wrong_lengths_are_errors():
    with pytest.raises(ValueError, match="3 pairs, found 5"):
        evaluate_pairs(np.ones((5, 2)), np.ones(3, bool))
    with pytest.raises(ValueError, match="folds"):
        evaluate_pairs(np.ones((6, 2)), np.ones(3, bool), folds=1)


def test_embedding_is_straight_plus_mirrored_rgb():
    images = [face(i) for i in range(5)]
    net = Stub().eval()
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        straight, mirrored = net(x), net(x.flip(3))
    encoded = [png(image) for image in images]
    out = embed_images(net, encoded, CPU, batch_size=2)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, (straight + mirrored).numpy(), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(embed_images(net, encoded, CPU, 2, flip=False), straight, rtol=1e-6, atol=1e-5)


def test_training_mode_of_every_part_comes_back():
    net = Stub().train()
    net.norm.eval()  # a frozen batch norm
    mean = net.norm.running_mean.clone()
    first = embed_images(net, [png(face(0))] * 3, CPU, 2)
    assert net.training
    assert net.drop.training
    assert not net.norm.training
    assert torch.equal(net.norm.running_mean, mean)
    np.testing.assert_array_equal(first[0], first[1])  # no dropout
    net.norm.train()
    with pytest.raises(ValueError, match="image 1"):
        embed_images(net, [png(face(0)), b"no image"], CPU, 1)
    assert net.norm.training


def test_sizes():
    net = Stub().eval()
    small, large = embed_images(net, [png(face(0)), png(face(0, 224))], CPU, 2)
    np.testing.assert_allclose(small, large, atol=1e-3)
    squeezed = embed_images(net, [png(face(0, 224)[:, ::2])], CPU, 2)  # resized to the square again
    np.testing.assert_allclose(small, squeezed[0], atol=1e-3)
    assert embed_images(net, [], CPU, 2).shape == (0, 0)
    with pytest.raises(ValueError, match="batch_size"):
        embed_images(net, [], CPU, 0)


def test_verify_on_one_rank():
    pairs = made_set()
    net = Stub()
    result = verify(net, pairs, CPU, batch_size=7)
    raw = embed_images(net, pairs.encoded, CPU, 7)
    length = np.linalg.norm(raw, axis=1, keepdims=True)
    reference = evaluate_pairs(raw / length, pairs.issame)
    assert result.accuracy == reference.accuracy == 1
    assert result.genuine_cosine == pytest.approx(1)
    assert net.training


def test_the_norm_is_the_mean_of_straight_and_mirrored_each():
    pairs, net = made_set(), Stub().eval()
    x = torch.stack([torch.from_numpy(decode_rgb(image)).permute(2, 0, 1) / 127.5 - 1 for image in pairs.encoded])
    with torch.no_grad():
        both = torch.cat((net(x), net(x.flip(3))))  # insightface's XNorm: each one's length, before they are added
    assert verify(net, pairs, CPU, batch_size=7).norm == pytest.approx(float(both.norm(dim=1).mean()), rel=1e-6)


def drawn_pairs():
    """40 pairs of 6 images, two of them of another size; the same bytes as several objects, as a .bin has them."""
    images = [png(face(i, size)) for i, size in enumerate((112, 112, 160, 112, 80, 112))]
    pairs = np.random.default_rng(0).integers(0, 6, (40, 2))
    encoded = [bytes(bytearray(images[i])) for i in pairs.reshape(-1)]
    return PairSet("drawn", encoded, np.arange(40) % 2 == 0), pairs


def test_each_different_image_is_embedded_once():
    pairs, drawn = drawn_pairs()
    net, seen = Stub(), []
    net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    result = verify(net, pairs, CPU, batch_size=4)
    assert sum(seen) == 2 * 6
    raw = embed_images(net, pairs.encoded, CPU, 4)
    expected = evaluate_embeddings(raw, pairs.issame)
    for name in ("accuracy", "tar", "genuine_cosine", "impostor_cosine", "spread"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=1e-6)
    assert result.resized == np.isin(drawn, (2, 4)).sum() > 2
    meter = LengthMeter()
    embed_batches(net, pair_loader(pairs.encoded), 80, CPU, 4, meter=meter)
    assert result.norm == pytest.approx(meter.mean(), rel=1e-6)
    pairs.encoded[:] = [b"no image" if image == pairs.encoded[7] else image for image in pairs.encoded]
    first = pairs.encoded.index(b"no image")
    with pytest.raises(ValueError, match=f"image {first}: not a decodable image"):
        verify(net, pairs, CPU, batch_size=4)


def test_verify_reports_non_finite_weights():
    net = Stub()
    with torch.no_grad():
        net.fc.weight[0, 0] = float("nan")
    result = verify(net, made_set(), CPU, 8)
    assert result.non_finite == 40
    assert np.isnan(result.accuracy)


def test_verify_with_zero_embeddings():
    net = Stub()
    with torch.no_grad():
        net.fc.weight.zero_()
    result = verify(net, made_set(), CPU, 8)
    assert result.spread == 0
    assert result.norm == 0


def verify_on_rank(rank, world_size, n):
    net = Stub()
    wrapped = nn.parallel.DistributedDataParallel(net) if n > 4 else net
    return vars(verify(wrapped, set_with_another_size(n), CPU, 4))


def set_with_another_size(n):
    pairs = made_set(n)
    return replace(pairs, encoded=[png(face(0, 160)), *pairs.encoded[1:-1], png(face(1, 80))])


@pytest.mark.distributed
@pytest.mark.parametrize(("world_size", "n"), [(2, 13), (3, 1), (3, 7)])
def test_every_rank_gives_the_result_of_one(world_size, n):
    wanted = vars(verify(Stub(), set_with_another_size(n), CPU, 4))
    assert wanted["resized"] == 2
    for found in run_ranks(verify_on_rank, world_size, n):
        for key, value in wanted.items():
            if key != "message":
                np.testing.assert_allclose(found[key], value, rtol=1e-6)
        assert found["message"] == wanted["message"]


def verify_broken(rank, world_size):
    pairs = made_set(4)
    pairs.encoded[7] = b"no image"  # in the last rank's share
    try:
        verify(Stub(), pairs, CPU, 4)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_a_broken_image_stops_all_ranks_alike():
    messages = run_ranks(verify_broken, 2)
    assert messages[0] == messages[1]
    assert messages[0].startswith("verification set made, image 7: not a decodable image")


def test_result_without_figures():
    assert np.isnan(PairResult().accuracy)
    assert PairResult().tpr.shape == (400,)


@pytest.mark.slow
def test_real_faces(shared_data):
    pairs = load_bin(shared_data / "lfw_train" / "lfw.bin")
    result = verify(Stub(64), pairs, CPU, 100)
    assert 0.5 < result.accuracy < 0.8  # a projection of small grey pictures: above chance, far from good
    assert result.non_finite == 0
    assert result.genuine_cosine > result.impostor_cosine
