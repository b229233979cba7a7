"""The loader with nvidia-dali against the plain one, on the CPU; and what of it needs no DALI."""

import importlib.util
import json

import cv2
import numpy as np
import pytest
import torch

import train
from data.dali import DaliLoader, EncodedFaces
from data.faces import FaceRecords
from data.records.layout import pack
from data.records.writer import write_face_records
from dataset import get_dataloader
from face_files import FACES, LABELS, insightface_records, make_image_folder, write
from paths import ROOT


def has_dali():
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False


needs_dali = [
    pytest.mark.dali,
    pytest.mark.skipif(not has_dali(), reason="nvidia-dali is not installed (0.7 GB): make dali"),
]


def jpeg(rng):
    small = rng.integers(0, 256, (14, 14, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(small, (112, 112), interpolation=cv2.INTER_CUBIC))[1].tobytes()


@pytest.fixture
def jpegs(tmp_path):
    rng = np.random.default_rng(0)
    write_face_records(tmp_path, [[jpeg(rng) for _ in range(3)] for _ in range(20)])
    return tmp_path


def test_only_images_reach_the_decoder(tmp_path):
    """Neither the header record nor identity records, though the index lists them."""
    write(tmp_path, insightface_records())
    faces = FaceRecords(tmp_path)
    assert len(faces.reader) == 10
    batch = EncodedFaces(faces).__getitems__(list(range(len(faces))))
    files = np.split(batch.files.numpy(), batch.sizes_B.cumsum(0)[:-1].tolist())
    assert [file.tobytes() for file in files] == [image for images in FACES for image in images]
    assert batch.labels_B.tolist() == LABELS


def test_a_jpeg_cut_short_is_refused_before_dali_fills_it_in(tmp_path):
    image = jpeg(np.random.default_rng(0))
    write(tmp_path, [(0, pack(0, image)), (1, pack(1, image[:-500]))])
    with pytest.raises(ValueError, match=r"record key 1 at byte \d+: not a decodable image"):
        EncodedFaces(FaceRecords(tmp_path)).__getitems__([0, 1])
    skipping = EncodedFaces(FaceRecords(tmp_path, on_bad_sample="skip"))
    batch = skipping.__getitems__([0, 1])
    assert batch.sample_ids_B.tolist() == [0, 0]
    assert "record key 1" in batch.damaged[0]


@pytest.mark.skipif(has_dali(), reason="nvidia-dali is installed")
def test_without_dali_the_error_says_what_to_install(jpegs):
    with pytest.raises(ValueError, match=r"dali = True needs nvidia-dali .*pip install -r requirement-dali\.txt"):
        get_dataloader(jpegs, 4, num_workers=0, dali=True)


def test_synthetic_faces_have_nothing_to_decode():
    loader = get_dataloader("synthetic", 4, num_classes=5, num_image=8, num_workers=0, dali=True)
    assert not isinstance(loader, DaliLoader)


class TestParity:
    pytestmark = needs_dali

    def compare(self, source, batch_size=8, **options):
        """Both loaders over two epochs, the second one from its third step on."""
        plain = get_dataloader(source, batch_size, num_workers=0, **options)
        dali = get_dataloader(source, batch_size, num_workers=1, dali=True, **options)
        assert isinstance(dali, DaliLoader)
        pairs = []
        for epoch, step in ((0, 0), (1, 2)):
            for loader in (plain, dali):
                loader.batch_sampler.set_position(epoch, step)
            assert len(plain) == len(dali)
            pairs += list(zip(plain, dali, strict=True))
        for one, other in pairs:
            assert other.images_BHW3.dtype == torch.uint8
            assert one.images_BHW3.shape == other.images_BHW3.shape
            assert torch.equal(one.labels_B, other.labels_B)
            assert torch.equal(one.sample_ids_B, other.sample_ids_B)
            assert list(one.damaged) == list(other.damaged)
        return pairs

    def assert_alike(self, pairs):
        """Count, histogram of labels, mean and standard deviation, and the pixels up to rounding."""
        one, other = (torch.cat([pair[i].images_BHW3 for pair in pairs]).double() for i in (0, 1))
        labels = [torch.cat([pair[i].labels_B for pair in pairs]) for i in (0, 1)]
        assert len(one) == len(other)
        assert torch.equal(torch.bincount(labels[0]), torch.bincount(labels[1]))
        torch.testing.assert_close(one.mean((0, 1, 2)), other.mean((0, 1, 2)), atol=0.1, rtol=0)
        torch.testing.assert_close(one.std((0, 1, 2)), other.std((0, 1, 2)), atol=0.1, rtol=0)
        assert (one - other).abs().mean() < 0.5

    def test_records(self, jpegs):
        self.assert_alike(self.compare(jpegs))

    def test_the_last_of_three_ranks(self, jpegs):
        self.assert_alike(self.compare(jpegs, 4, rank=2, world_size=3))

    def test_real_faces(self, shared_data):
        self.assert_alike(self.compare(shared_data / "lfw_small_im2rec", 64))

    def test_image_folder_of_png(self, tmp_path):
        pairs = self.compare(make_image_folder(tmp_path), 2)
        assert all(torch.equal(one.images_BHW3, other.images_BHW3) for one, other in pairs)

    def test_several_sets_with_weights(self, jpegs, tmp_path):
        folder = make_image_folder(tmp_path / "folder")
        self.assert_alike(self.compare([jpegs, folder], 4, weights=[0.5, 2.0]))

    @pytest.mark.parametrize("what", ["junk", "size"])
    def test_a_damaged_image_is_named_or_replaced(self, tmp_path, what):
        rng = np.random.default_rng(0)
        images = [jpeg(rng) for _ in range(16)]
        other_size = cv2.imencode(".jpg", np.zeros((96, 112, 3), np.uint8))[1].tobytes()
        images[5] = b"no image" if what == "junk" else other_size
        write(tmp_path, [(i, pack(i // 2, image)) for i, image in enumerate(images)])
        with pytest.raises(ValueError, match=r"record key 5 at byte \d+: (not a decod|.* is \(96, 112\))"):
            list(get_dataloader(tmp_path, 4, num_workers=0, dali=True))
        pairs = self.compare(tmp_path, 4, on_bad_sample="skip")
        assert sum(len(batch.damaged) for _, batch in pairs) >= 1
        self.assert_alike(pairs)

    def test_an_epoch_left_early_does_not_leak_into_the_next(self, jpegs):
        loader = get_dataloader(jpegs, 4, num_workers=0, dali=True)
        first = next(iter(loader))
        assert torch.equal(next(iter(loader)).sample_ids_B, first.sample_ids_B)
        assert [batch.sample_ids_B.tolist() for batch in loader] == list(loader.batch_sampler)

    def test_training(self, jpegs, tmp_path):
        tiny = str(ROOT / "tests" / "tiny.py")
        options = [f"rec={jpegs}", "num_classes=auto", "num_image=None", "num_workers=1"]
        for name in ("plain", "dali"):
            train.main([tiny, *options, f"output={tmp_path / name}", f"dali={name == 'dali'}"])
        losses = [
            [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
            for name in ("plain", "dali")
        ]
        assert len(losses[0]) == 7
        assert losses[1] == pytest.approx(losses[0], rel=1e-2)
