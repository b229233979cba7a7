"""init_centres = "class_means": each centre starts as the direction of its images' mean embedding."""

import cv2
import numpy as np
import pytest
import torch

import train
from backbones.base import to_network_input
from data.faces import FaceDataset, SyntheticFaces
from heads.shard import INITIAL_STD, first_centres
from model_files import load_model, save_random_model
from ranks import run_ranks
from tiny_runs import TINY, metrics, run
from training import first_centres as module
from training.first_centres import ImagesOfClasses
from utils.config import get_config
from utils.distributed import Ranks, all_gather_objects

ALONE = Ranks(0, 1, 0, torch.device("cpu"))
FACES = ["num_image=60", "num_classes=70", "batch_size=9"]  # some identities have no image


@pytest.fixture
def start(tmp_path):
    return save_random_model(tmp_path / "start", "rtiny", 32)


def from_means(start, output, *overrides):
    return [f"output={output}", "init_centres=class_means", f"init_backbone={start}", *overrides]


def centres_after_start(rank, world_size, overrides):
    """All ranks' centres and visits."""
    state, _ = train.prepare(get_config(TINY, overrides), Ranks(rank, world_size, rank, torch.device("cpu")))
    shard = state.classifier.shard
    own = torch.arange(shard.layout.class_start, shard.layout.class_end)
    parts = all_gather_objects((shard.centres(own), shard.visits.clone(), state.backbone.training))
    centres, visits, training = zip(*parts, strict=True)
    assert all(training)
    return torch.cat(centres), torch.cat(visits)


def wanted_centres(start):
    """By a loop over all images, in float64; classes without an image as they start at random."""
    faces, network = SyntheticFaces(70, 60), load_model(start, "rtiny", 32)
    sums = np.zeros((70, 32))
    for index in range(60):
        image, label = faces.load(index)
        with torch.no_grad():
            embedding = network(to_network_input(torch.from_numpy(image.copy())[None]))[0].double().numpy()
        sums[label] += embedding / np.linalg.norm(embedding)
    wanted = first_centres(2048, torch.arange(70), 32, torch.float32).numpy()
    seen = np.unique(faces.labels)
    wanted[seen] = sums[seen] / np.linalg.norm(sums[seen], axis=1, keepdims=True) * INITIAL_STD * 32**0.5
    return wanted, seen


@pytest.mark.parametrize("at_once", [module.CLASSES_AT_ONCE, 15])
@pytest.mark.parametrize("place", ["device", "host", "file"])
def test_centres_are_the_means_of_unit_embeddings(tmp_path, start, monkeypatch, place, at_once):
    monkeypatch.setattr(module, "CLASSES_AT_ONCE", at_once)
    wanted, seen = wanted_centres(start)
    options = from_means(start, tmp_path / "run", *FACES, f"head_storage={place}", "head_size=3")
    centres, visits = centres_after_start(0, 1, options)
    np.testing.assert_allclose(centres.numpy(), wanted, atol=1e-6)
    np.testing.assert_array_equal(visits, np.isin(np.arange(24), seen // 3))
    log = (tmp_path / "run" / "training.log").read_text()
    missing = 70 - len(seen)
    assert missing > 0
    assert (
        f"init_centres: class means of 60 images for {len(seen)} of 70 classes; {missing} without a usable image "
        "start at random" in log
    )


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_ranks_gives_the_same(tmp_path, start, world_size):
    wanted, _ = wanted_centres(start)
    options = from_means(
        start, tmp_path / "run", *FACES, "head_size=30", "batch_size=3"
    )  # a rank of four has no head
    for centres, _ in run_ranks(centres_after_start, world_size, options):
        np.testing.assert_allclose(centres.numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("options", [[], ["row_momentum=0.9"], ["optimizer=adamw"], ["row_idle=dense"]])
def test_a_run_starts_from_them_and_resumes_bit_for_bit(tmp_path, start, options):
    options = ["num_epoch=2", "checkpoint_steps=5", *options]
    whole = run(tmp_path / "a", *from_means(start, tmp_path / "a", *options))
    state, data = train.prepare(get_config(TINY, from_means(start, tmp_path / "b", *options)), ALONE)
    batches = train.epoch_batches(state, data, train.Speedometer())
    for _ in range(5):
        state.train_step(batches)
        state.mean_loss()
    state.save()
    state.saver.finish()
    (tmp_path / "b" / "training.log").write_text("")
    rest = run(tmp_path / "b", *from_means(start, tmp_path / "b", *options, "resume=True"))
    assert {step: rest[step] for step in range(7, 25)} == {step: whole[step] for step in range(7, 25)}
    log = (tmp_path / "b" / "training.log").read_text()
    assert "class means of" not in log
    assert "init_centres = 'class_means' has no effect" in log


def test_they_are_nearer_than_random_ones(tmp_path, start):
    """The first step's cosine with the own centre, before any update."""
    run(tmp_path / "random", f"init_backbone={start}", "num_image=16")
    run(tmp_path / "means", *from_means(start, tmp_path / "means", "num_image=16"))
    first = [metrics(tmp_path / name, "positive_cosine")[1] for name in ("random", "means")]
    assert abs(first[0]) < 0.2
    assert first[1] > first[0] + 0.2


class Labelled(FaceDataset):
    def __init__(self, labels, unusable=()):
        self._labels, self.unusable = np.array(labels), np.array(unusable, np.int64)


def test_a_class_gives_evenly_spread_images():
    images = ImagesOfClasses(Labelled([5, 3] * 100 + [4, -1, 9]), 3, 7)
    assert images.some(4, 32).tolist() == [200]
    assert images.some(6, 32).tolist() == []
    chosen = images.some(5, 32)
    assert len(chosen) == 32
    assert (chosen[0], chosen[-1]) == (0, 198)
    assert set(np.diff(chosen)) <= {6, 8}
    assert images.some(3, 1000).tolist() == list(range(1, 200, 2))
    assert ImagesOfClasses(Labelled([3, 3, 3], [1]), 3, 4).some(3, 32).tolist() == [0, 2]


def make_folder(root, damaged):
    rng = np.random.default_rng(0)
    for name in "abcdefgh":
        (root / name).mkdir(parents=True)
        for i in range(4):
            cv2.imwrite(str(root / name / f"{i}.png"), rng.integers(0, 255, (112, 112, 3), np.uint8))
    for name in damaged:
        (root / name).write_bytes(b"damaged")
    return root


def test_damaged_images_follow_on_bad_sample(tmp_path, start):
    folder = make_folder(tmp_path / "faces", ["c/2.png", "f/0.png", "f/1.png", "f/2.png", "f/3.png"])
    options = from_means(start, tmp_path / "run", f"rec={folder}", "num_classes=auto", "head_size=2", "num_workers=2")
    with pytest.raises(ValueError, match=r"2\.png: .*damaged"):
        train.prepare(get_config(TINY, options), ALONE)
    assert not (tmp_path / "run" / "training.log").exists()
    centres, _ = centres_after_start(0, 1, [*options, "on_bad_sample=skip"])
    log = (tmp_path / "run" / "training.log").read_text()
    assert "class means of 27 images for 7 of 8 classes; 1 without a usable image start at random" in log
    assert "5 damaged images left out, the last: " in log
    assert torch.equal(centres[5:6], first_centres(2048, torch.tensor([5]), 32, torch.float32))


def fails_on_one_rank(rank, world_size, overrides):
    if rank == 1:
        module.ClassMeans.find = refuse
    try:
        centres_after_start(rank, world_size, overrides)
    except OSError as error:
        return str(error)
    return None


def refuse(self, classes_S):
    raise OSError("disk gone")


@pytest.mark.distributed
def test_an_error_of_one_rank_is_raised_on_all(tmp_path, start):
    options = from_means(start, tmp_path / "run", *FACES, "batch_size=3")
    assert run_ranks(fails_on_one_rank, 2, options) == ["disk gone"] * 2


def test_embeddings_that_are_not_finite_are_named(tmp_path, start):
    state = torch.load(start)
    state["fc.weight"] *= 1e30
    state["features.weight"] *= 1e30
    torch.save(state, start)
    with pytest.raises(ValueError, match="init_backbone gives embeddings that are not finite"):
        train.prepare(get_config(TINY, from_means(start, tmp_path / "run")), ALONE)


def test_they_need_a_network_that_has_learnt():
    with pytest.raises(ValueError, match="init_centres = 'class_means' needs init_backbone"):
        get_config(TINY, ["init_centres=class_means"])
