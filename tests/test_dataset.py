import pickle
import subprocess
import sys
from itertools import chain

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import (
    Batch,
    EpochSampler,
    FaceRecords,
    ImageFolder,
    SyntheticFaces,
    augment,
    check_labels,
    get_dataloader,
)
from paths import ROOT
from utils.images import to_network_input
from utils.recordio import RecordWriter, pack, write_face_records


def face(value, size=(112, 112)):
    """A PNG of one grey value, which tells images apart."""
    return cv2.imencode(".png", np.full((*size, 3), value, np.uint8))[1].tobytes()


FACES = [[face(10), face(11)], [face(20)], [face(30), face(31), face(32)]]
VALUES, LABELS = [10, 11, 20, 30, 31, 32], [0, 0, 1, 2, 2, 2]


def contents(dataset):
    loaded = [dataset.load(i) for i in range(len(dataset))]
    return [int(image[0, 0, 0]) for image, _ in loaded], [label for _, label in loaded]


def write(folder, payloads):
    """A train.rec with these (key, payload) records."""
    with RecordWriter(folder / "train.rec") as writer:
        for key, payload in payloads:
            writer.write(key, payload)
    return folder


def insightface_records(end=7.0, identities=3):
    """What write_face_records makes of FACES, with a choice of what the header record claims."""
    images = [(key, pack(LABELS[key - 1], face(VALUES[key - 1]), key)) for key in range(1, 7)]
    ranges = [(7 + i, pack([0, 0])) for i in range(identities)]
    return [(0, pack([end, end + identities])), *images, *ranges]


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def image_folder(tmp_path):
    for identity, images in zip(("a", "b", "c"), FACES, strict=True):
        (tmp_path / identity).mkdir()
        for i, image in enumerate(images):
            (tmp_path / identity / f"{i}.png").write_bytes(image)
    return tmp_path


class TestFaceRecords:
    @pytest.mark.parametrize("by_file", [True, False])
    def test_insightface(self, folder, by_file):
        write_face_records(folder, FACES)
        dataset = FaceRecords(folder / "train.rec" if by_file else folder)
        assert dataset.is_insightface
        assert contents(dataset) == (VALUES, LABELS)
        assert (dataset.labels.tolist(), dataset.labels.dtype) == (LABELS, np.int64)
        assert dataset.keys.tolist() == [1, 2, 3, 4, 5, 6]
        assert (len(dataset), dataset.num_classes) == (6, 3)

    @pytest.mark.parametrize("first_key", [0, 1, 50])
    def test_im2rec(self, folder, first_key):
        rows = zip(LABELS, VALUES, strict=True)
        write(folder, [(first_key + i, pack(label, face(value))) for i, (label, value) in enumerate(rows)])
        dataset = FaceRecords(folder)
        assert not dataset.is_insightface
        assert contents(dataset) == (VALUES, LABELS)
        assert (dataset.labels.tolist(), dataset.num_classes) == (LABELS, 3)

    @pytest.mark.parametrize("first_key", [0, 1])
    def test_images_with_label_vectors(self, folder, first_key):
        # A vector of two makes the first record look like insightface's header, but for its image.
        write(folder, [(first_key + i, pack([label, 9.5], face(1))) for i, label in enumerate(LABELS)])
        dataset = FaceRecords(folder)
        assert not dataset.is_insightface
        assert contents(dataset)[1] == dataset.labels.tolist() == LABELS

    def test_insightface_with_label_vectors(self, folder):
        records = insightface_records()
        records[2] = (2, pack([0, 1, 2], face(11)))
        assert contents(FaceRecords(write(folder, records))) == (VALUES, LABELS)

    @pytest.mark.parametrize("end", [7.0, 4.0, 8.0, 1.0, 1e9, 0.0, float("nan"), float("inf")])
    @pytest.mark.parametrize("identities", [0, 3])
    def test_the_headers_rounded_range_does_not_matter(self, folder, end, identities):
        dataset = FaceRecords(write(folder, insightface_records(end, identities)))
        assert contents(dataset) == (VALUES, LABELS)

    def test_more_identity_records_than_are_looked_at_in_one_go(self, folder):
        assert len(FaceRecords(write(folder, insightface_records(identities=9000)))) == 6

    def test_an_emptied_record_among_the_images_ends_nothing(self, folder):
        records = insightface_records()
        records[4] = (4, pack(2, b""))
        dataset = FaceRecords(write(folder, records))
        assert dataset.labels.tolist() == LABELS
        with pytest.raises(ValueError, match=r"train\.rec: record key 4 at byte \d+: not a decodable image: 0 bytes"):
            dataset.load(3)

    def test_keys_left_out_and_in_another_order(self, folder):
        records = [record for record in insightface_records() if record[0] != 3]
        dataset = FaceRecords(write(folder, records[::-1]))
        assert contents(dataset) == ([10, 11, 30, 31, 32], [0, 0, 2, 2, 2])
        assert dataset.keys.tolist() == [1, 2, 4, 5, 6]

    def test_index_without_the_header_record(self, folder):
        dataset = FaceRecords(write(folder, insightface_records()[1:]))
        assert contents(dataset) == (VALUES, LABELS)

    def test_no_images(self, folder):
        with pytest.raises(ValueError, match=r"train\.rec: none of its 2 records holds an image"):
            FaceRecords(write(folder, [(0, pack([1, 2])), (1, pack([1, 1]))]))

    def test_undecodable(self, folder):
        write(folder, [(0, pack(0, face(1))), (5, pack(1, b"\xff\xd8 no image"))])
        with pytest.raises(ValueError, match=r"train\.rec: record key 5 at byte \d+: not a decodable image"):
            FaceRecords(folder).load(1)

    def test_other_size(self, folder):
        write(folder, [(3, pack(0, face(1, (120, 100))))])
        with pytest.raises(ValueError, match=r"record key 3 .* is \(120, 100\), expected \(112, 112\).*resize"):
            FaceRecords(folder).load(0)
        dataset = FaceRecords(folder, image_size=(120, 100))
        assert dataset[0].images_BHW3.shape == (1, 120, 100, 3)

    @pytest.mark.parametrize("label", [1.5, float("nan"), float("inf")])
    def test_label_that_is_no_identity(self, folder, label):
        dataset = FaceRecords(write(folder, [(0, pack(0, face(1))), (4, pack(label, face(2)))]))
        for use in (dataset.scan_labels, lambda: dataset.load(1)):
            with pytest.raises(ValueError, match=rf"record key 4 at byte \d+: label {label} is no whole number"):
                use()

    def test_out_of_range(self, folder):
        write_face_records(folder, FACES)
        for index in (-1, 6):
            with pytest.raises(IndexError):
                FaceRecords(folder).load(index)

    def test_pickles(self, folder):
        write_face_records(folder, FACES)
        dataset = FaceRecords(folder)
        dataset.load(0)
        assert contents(pickle.loads(pickle.dumps(dataset))) == (VALUES, LABELS)

    def test_batch(self, folder):
        write_face_records(folder, FACES)
        batch = FaceRecords(folder).__getitems__([5, 0, 2])
        assert batch.images_BHW3.dtype == torch.uint8
        assert batch.images_BHW3[:, 0, 0, 0].tolist() == [32, 10, 20]
        assert batch.labels_B.tolist() == [2, 0, 1]
        assert batch.sample_ids_B.tolist() == [5, 0, 2]
        assert batch.labels_B.dtype == batch.sample_ids_B.dtype == torch.int64


class TestRealFaces:
    @pytest.mark.parametrize(
        ("name", "identities", "images", "insightface"),
        [("lfw_train", 4040, 9450, True), ("lfw_small_im2rec", 40, 738, False)],
    )
    def test_counts(self, shared_data, name, identities, images, insightface):
        dataset = FaceRecords(shared_data / name)
        assert (len(dataset), dataset.num_classes, dataset.is_insightface) == (images, identities, insightface)
        assert len(np.unique(dataset.labels)) == identities
        check_labels(dataset.labels, identities)
        for index in range(0, images, 97):
            image, label = dataset.load(index)
            assert image.shape == (112, 112, 3)
            assert label == dataset.labels[index]

    def test_an_epoch_reads_each_image_once(self, shared_data):
        loader = get_dataloader(shared_data / "lfw_small_im2rec", 41, num_workers=2)
        batches = list(loader)
        assert sorted(torch.cat([batch.sample_ids_B for batch in batches]).tolist()) == list(range(738))
        for batch in batches:
            assert (loader.dataset.labels[batch.sample_ids_B] == batch.labels_B.numpy()).all()


class TestImageFolder:
    def test_contents(self, image_folder):
        dataset = ImageFolder(image_folder)
        assert contents(dataset) == (VALUES, LABELS)
        assert dataset.classes == ["a", "b", "c"]
        assert (dataset.labels.tolist(), dataset.num_classes) == (LABELS, 3)

    def test_what_is_left_out(self, image_folder):
        (image_folder / ".cache").mkdir()
        (image_folder / "classes.json").write_text("{}")
        (image_folder / "a/.hidden.jpg").write_bytes(b"")
        (image_folder / "a/list.txt").write_bytes(b"")
        assert contents(ImageFolder(image_folder)) == (VALUES, LABELS)

    def test_names_of_any_kind(self, folder):
        names = ["ä b.PNG", "人.jpeg", "x" * 200 + ".png"]
        (folder / "日本").mkdir()
        for i, name in enumerate(sorted(names, key=str.encode)):
            (folder / "日本" / name).write_bytes(face(i))
        assert contents(ImageFolder(folder)) == ([0, 1, 2], [0, 0, 0])

    def test_identity_without_an_image(self, image_folder):
        (image_folder / "bb").mkdir()
        with pytest.raises(ValueError, match=r"1 of 4 identity folders hold no image \['bb'\]"):
            ImageFolder(image_folder)

    def test_damaged_and_other_size(self, image_folder):
        (image_folder / "a/0.png").write_bytes(b"no image")
        (image_folder / "a/1.png").write_bytes(face(0, (96, 112)))
        dataset = ImageFolder(image_folder)
        with pytest.raises(ValueError, match=r"a/0\.png: not a decodable image"):
            dataset.load(0)
        with pytest.raises(ValueError, match=r"a/1\.png: .* is \(96, 112\), expected \(112, 112\)"):
            dataset.load(1)


class TestSyntheticFaces:
    @pytest.mark.parametrize(("num_classes", "num_image"), [(1, 5), (10, 10), (7, 100), (10**8, 1000), (13, 4)])
    def test_labels_cover_the_range(self, num_classes, num_image):
        dataset = SyntheticFaces(num_classes, num_image)
        assert (len(dataset), dataset.num_classes) == (num_image, num_classes)
        check_labels(dataset.labels, num_classes)
        assert len(np.unique(dataset.labels)) == min(num_classes, num_image)

    def test_function_of_seed_and_index(self):
        one, same, other = SyntheticFaces(9, 100), SyntheticFaces(9, 100), SyntheticFaces(9, 100, seed=1)
        assert all(
            (one.load(i)[0] == same.load(i)[0]).all() and one.load(i)[1] == same.load(i)[1] for i in range(100)
        )
        assert (one.load(3)[0] != other.load(3)[0]).any()
        assert (one.load(3)[0] != one.load(4)[0]).any()
        assert one.load(99)[0].shape == (112, 112, 3)

    def test_refused(self):
        with pytest.raises(ValueError, match="at least 1, got 0 and 5"):
            SyntheticFaces(0, 5)


class TestCheckLabels:
    def test_in_range(self):
        check_labels([0, 4], 5)
        check_labels(np.array([0.0, 4.0], np.float32), 5)

    def test_too_high(self):
        with pytest.raises(ValueError, match=r'from 0 to 5, but num_classes = 5 allows 0 to 4: .* "auto" or 6'):
            check_labels([0, 5], 5)

    def test_negative(self):
        with pytest.raises(ValueError, match=r"from -1 to 2, .* number the identities from 0 on"):
            check_labels([-1, 2], 5)

    @pytest.mark.parametrize("label", [0.5, float("nan"), float("inf")])
    def test_no_whole_number(self, label):
        with pytest.raises(ValueError, match=f"labels: label {label} is no whole number"):
            check_labels([1.0, label], 5)

    def test_none(self):
        with pytest.raises(ValueError, match="empty"):
            check_labels([], 5)


class TestEpochSampler:
    @pytest.mark.parametrize("world_size", [1, 2, 3, 4])
    def test_same_global_batches_on_any_number_of_ranks(self, world_size):
        alone = list(EpochSampler(100, 12))
        ranks = [list(EpochSampler(100, 12 // world_size, rank, world_size)) for rank in range(world_size)]
        assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone

    @settings(deadline=None)
    @given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
    def test_full_and_disjoint(self, n, batch_size, world_size, epoch):
        if n < batch_size * world_size:
            with pytest.raises(ValueError, match=f"epoch of {n} images .* {world_size} ranks x {batch_size} = "):
                EpochSampler(n, batch_size, 0, world_size)
            return
        seen = []
        for rank in range(world_size):
            sampler = EpochSampler(n, batch_size, rank, world_size)
            sampler.set_position(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler) == sampler.steps_per_epoch == n // (batch_size * world_size)
            assert all(len(batch) == batch_size for batch in batches)
            seen += chain(*batches)
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(range(n))

    def test_seed_and_epoch(self):
        sampler = EpochSampler(50, 5)
        first = list(sampler)
        assert list(sampler) == first
        assert list(EpochSampler(50, 5, seed=1)) != first
        sampler.set_position(1)
        assert list(sampler) != first

    def test_resume(self):
        sampler = EpochSampler(50, 5)
        sampler.set_position(3)
        epoch = list(sampler)
        sampler.set_position(3, 4)
        other = EpochSampler(50, 5)
        other.load_state_dict(sampler.state_dict())
        assert list(other) == epoch[4:]
        assert len(other) == 6

    def test_resume_under_another_global_batch(self):
        sampler = EpochSampler(100, 4)
        sampler.set_position(2, 7)  # after 28 images
        other = EpochSampler(100, 5, 0, 2)
        other.load_state_dict(sampler.state_dict())
        assert (other.epoch, other.step) == (2, 2)  # after 20

    def test_running_iteration_keeps_its_position(self):
        sampler = EpochSampler(50, 5)
        whole, running = list(sampler), iter(sampler)
        sampler.set_position(1, 3)
        assert list(running) == whole

    def test_no_such_step(self):
        sampler = EpochSampler(50, 5)
        sampler.set_position(0, 10)
        assert list(sampler) == []
        for epoch, step in ((0, 11), (0, -1), (-1, 0)):
            with pytest.raises(ValueError, match="an epoch has 10 steps"):
                sampler.set_position(epoch, step)

    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_no_batch(self, batch_size):
        with pytest.raises(ValueError, match="change batch_size"):
            EpochSampler(5, batch_size)


class TestLoader:
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_epochs_and_resume(self, num_workers):
        loader = get_dataloader("synthetic", 4, num_workers=num_workers, num_classes=5, num_image=30)
        for epoch, step in ((0, 0), (1, 0), (1, 5)):  # the workers persist
            loader.batch_sampler.set_position(epoch, step)
            expected = list(loader.batch_sampler)
            batches = list(loader)
            assert len(batches) == len(loader) == 7 - step
            assert [batch.sample_ids_B.tolist() for batch in batches] == expected
            for batch in batches:
                assert isinstance(batch, Batch)
                images = np.stack([loader.dataset.load(i)[0] for i in batch.sample_ids_B.tolist()])
                assert (batch.images_BHW3.numpy() == images).all()

    def test_workers_read_records_opened_before(self, folder):
        write_face_records(folder, FACES)
        dataset = FaceRecords(folder)
        dataset.load(0)
        (batch,) = get_dataloader(dataset, 6, num_workers=1)
        order = batch.sample_ids_B.argsort()
        assert batch.images_BHW3[order][:, 5, 5, 0].tolist() == VALUES
        assert batch.labels_B[order].tolist() == LABELS

    def test_does_not_touch_the_global_random_state(self):
        loader = get_dataloader("synthetic", 4, num_workers=0, num_classes=5, num_image=30)
        before = torch.get_rng_state()
        list(loader)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_workers_error_says_which_record(self, folder):
        write(folder, [(8, pack(0, b"no image"))])
        with pytest.raises(ValueError, match=r"train\.rec: record key 8 at byte 0: not a decodable image"):
            list(get_dataloader(folder, 1, num_workers=1))

    def test_sources(self, folder, image_folder):
        assert isinstance(get_dataloader(str(image_folder), 2, num_workers=0).dataset, ImageFolder)
        write_face_records(folder, FACES)
        assert isinstance(get_dataloader(folder, 2, num_workers=0).dataset, FaceRecords)
        loader = get_dataloader(folder / "train.rec", 2, rank=1, world_size=3, seed=5, num_workers=0)
        sampler = loader.batch_sampler
        assert (sampler.n, sampler.rank, sampler.global_batch, sampler.seed) == (6, 1, 6, 5)

    def test_no_source(self, folder):
        with pytest.raises(FileNotFoundError, match=r'nowhere: .* a \.rec file or "synthetic"'):
            get_dataloader(folder / "nowhere", 2)
        with pytest.raises(
            ValueError, match=r"neither train\.rec with train\.idx in it, nor <identity>/<image> below"
        ):
            get_dataloader(folder, 2)
        (folder / "faces.rec").write_bytes(b"")
        with pytest.raises(ValueError, match=r"give faces\.rec by its own path"):
            get_dataloader(folder, 2)
        with pytest.raises(ValueError, match="needs num_classes and num_image, got None and 4"):
            get_dataloader("synthetic", 2, num_image=4)

    def test_fewer_images_than_a_global_batch(self):
        with pytest.raises(ValueError, match="epoch of 7 images has no global batch of 2 ranks x 4 = 8"):
            get_dataloader("synthetic", 4, world_size=2, num_classes=5, num_image=7)


class TestAugment:
    ids_B = torch.arange(4000)
    images_BHW3 = torch.arange(4000 * 6).to(torch.uint8).reshape(4000, 1, 2, 3)

    def flipped(self, ids_B=ids_B, **where):
        images_BHW3 = self.images_BHW3[ids_B]
        out = augment(images_BHW3, ids_B, **{"seed": 7, "epoch": 0, **where})
        plain, mirrored = to_network_input(images_BHW3), to_network_input(images_BHW3.flip(2))
        is_flipped = (out == mirrored).flatten(1).all(1)
        assert ((out == plain).flatten(1).all(1) ^ is_flipped).all()
        return is_flipped

    def test_about_half(self):
        assert 0.46 < self.flipped().float().mean() < 0.54

    def test_whatever_the_batch(self):
        whole = self.flipped()
        assert torch.equal(torch.cat([self.flipped(ids) for ids in self.ids_B.split(37)]), whole)
        shuffled = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
        assert torch.equal(self.flipped(shuffled), whole[shuffled])

    @pytest.mark.parametrize("where", [{"epoch": 1}, {"seed": 8}])
    def test_other_epoch_or_seed(self, where):
        assert 0.46 < (self.flipped() != self.flipped(**where)).float().mean() < 0.54

    def test_not_at_all(self):
        out = augment(self.images_BHW3, self.ids_B, seed=7, epoch=0, flip=False)
        assert torch.equal(out, to_network_input(self.images_BHW3))
        assert out.dtype == torch.float32
        assert out.shape == (4000, 3, 1, 2)

    def test_input_is_left_alone(self):
        before = self.images_BHW3.clone()
        self.flipped()
        assert torch.equal(self.images_BHW3, before)


def test_a_process_with_live_workers_ends():
    """Workers that outlast a group's SIGTERM must still end when their parent does."""
    code = (
        "from dataset import get_dataloader\n"
        "loader = get_dataloader('synthetic', 4, num_classes=5, num_image=40, num_workers=2)\n"
        "keep = iter(loader); next(keep)\n"
        "import builtins; builtins.keep = keep, loader\n"
        "import torch.utils.data.dataloader as d\n"
        "d._MultiProcessingDataLoaderIter.__del__ = lambda self: None  # as when an exception's traceback holds it\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
