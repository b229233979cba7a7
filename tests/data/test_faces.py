import pickle

import numpy as np
import pytest
import torch

from data.faces import FaceRecords, ImageFolder, SyntheticFaces, check_labels
from data.records.layout import pack
from data.records.writer import write_face_records
from dataset import get_dataloader
from face_files import FACES, LABELS, VALUES, contents, face, insightface_records, make_image_folder, write


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def image_folder(tmp_path):
    return make_image_folder(tmp_path)


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
        assert len(dataset) == 6
        with pytest.raises(ValueError, match=r"train\.rec: record key 4 at byte \d+: not a decodable image: 0 bytes"):
            dataset.load(3)
        with pytest.raises(ValueError, match=r"record key 4 at byte \d+: it holds no image, but stands among"):
            dataset.scan_labels()

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
