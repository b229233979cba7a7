import json

import numpy as np
import pytest
import torch

from data.faces import FaceRecords, ImageFolder, SyntheticFaces
from data.joined import JoinedSets
from data.records.layout import pack
from data.records.writer import write_face_records
from dataset import get_dataloader
from face_files import FACES, LABELS, VALUES, contents, face, make_image_folder, write


@pytest.fixture
def records(tmp_path):
    (tmp_path / "records").mkdir()
    write_face_records(tmp_path / "records", [[face(50)], [face(60), face(61)]])
    return tmp_path / "records"


@pytest.fixture
def folder(tmp_path):
    return make_image_folder(tmp_path / "folder")


def write_map(tmp_path, people):
    path = tmp_path / "people.json"
    path.write_text(json.dumps(people))
    return path


def joined(folder, records, class_map=None, **options):
    return JoinedSets([ImageFolder(folder), FaceRecords(records)], ["folder", "records"], class_map, **options)


def test_labels_are_numbered_on_from_set_to_set(folder, records):
    faces = joined(folder, records)
    assert contents(faces) == ([*VALUES, 50, 60, 61], [*LABELS, 3, 4, 4])
    assert faces.labels.tolist() == [*LABELS, 3, 4, 4]
    assert (len(faces), faces.num_classes, faces.class_counts) == (9, 5, (3, 2))
    batch = faces.__getitems__([8, 0, 6, 3])  # in any order
    assert batch.images_BHW3[:, 0, 0, 0].tolist() == [61, 10, 50, 30]
    assert batch.labels_B.tolist() == [4, 0, 3, 2]
    assert batch.sample_ids_B.tolist() == [8, 0, 6, 3]
    assert "record key 3 at byte" in faces.where(8)


def test_folders_of_one_name_are_two_people(folder):
    faces = JoinedSets([ImageFolder(folder), ImageFolder(folder)])
    assert faces.num_classes == 6
    assert faces.class_names() == ["0/a", "0/b", "0/c", "1/a", "1/b", "1/c"]


@pytest.mark.parametrize(
    ("people", "labels", "classes"),
    [
        ([{"0": "b", "1": 0}], [0, 0, 1, 2, 2, 2, 1, 3, 3], 4),
        ([{"folder": "c", "records": 1}, {"0": 0, "1": 0}], [0, 0, 1, 2, 2, 2, 0, 2, 2], 3),
        ([{"0": ["a", "c"]}], [0, 0, 1, 0, 0, 0, 2, 3, 3], 4),  # one person twice in one set
        ([{"0": ["c", "a"], "1": [1]}], [0, 0, 1, 0, 0, 0, 2, 0, 0], 3),
        ([{"1": [0, 1]}], [0, 0, 1, 2, 2, 2, 3, 3, 3], 4),
        ([], [0, 0, 1, 2, 2, 2, 3, 4, 4], 5),
    ],
)
def test_people_of_several_sets(tmp_path, folder, records, people, labels, classes):
    faces = joined(folder, records, write_map(tmp_path, people))
    assert faces.labels.tolist() == labels
    assert contents(faces)[1] == labels
    assert faces.num_classes == classes
    assert set(labels) == set(range(classes)), "no number is left out"


def test_parts_and_names(tmp_path, folder, records):
    (records / "classes.json").write_text(json.dumps(["a", None]))
    faces = joined(folder, records, write_map(tmp_path, [{"0": "a", "1": 1}]))
    first, second = faces.parts()
    assert (first.name, first.images, first.classes, first.shared) == ("folder", range(6), range(3), 0)
    assert (second.name, second.images, second.classes, second.shared) == ("records", range(6, 9), range(3, 4), 1)
    assert faces.class_names() == ["folder/a", "folder/b", "folder/c", "records/a"]


@pytest.mark.parametrize(
    ("people", "message"),
    [
        ([{"0": "d"}], r"people\.json: entry 0: no class 'd'; the set has 3 named classes"),
        ([{"0": "a"}, {"1": 2}], "entry 1: no class 2; the set has 0 to 1"),
        ([{"1": True}], "no class True"),
        ([{"1": "a"}], "no class 'a'; the set has 0 named classes"),
        ([{"2": 0}], "no set '2'; there are 0 to 1: folder, records"),
        ([{"0": "a"}, {"0": 0}], "entry 1: class 0 of set 0 is in entry 0 already"),
        ({"0": "a"}, "expected a list of people"),
        (["a"], "expected a list of people"),
    ],
)
def test_maps_that_fit_nothing(tmp_path, folder, records, people, message):
    faces = joined(folder, records, write_map(tmp_path, people))
    with pytest.raises(ValueError, match=message):
        faces.num_classes  # noqa: B018


def test_no_map(tmp_path, folder, records):
    with pytest.raises(FileNotFoundError, match=r"people\.json: no such file; class_map is a JSON list"):
        joined(folder, records, tmp_path / "people.json").num_classes  # noqa: B018
    (tmp_path / "people.json").write_text("{")
    with pytest.raises(ValueError, match=r"people\.json: no JSON"):
        joined(folder, records, tmp_path / "people.json").num_classes  # noqa: B018


def test_two_sets_of_one_name_are_told_apart_by_number(tmp_path, folder):
    sets = [ImageFolder(folder), ImageFolder(folder)]
    with pytest.raises(ValueError, match="several are called 'x': give the set's number"):
        JoinedSets(sets, ["x", "x"], write_map(tmp_path, [{"x": "a"}])).num_classes  # noqa: B018
    assert JoinedSets(sets, ["x", "x"], write_map(tmp_path, [{"0": "a", "1": "a"}])).num_classes == 5


def test_image_sizes_differ(folder):
    with pytest.raises(ValueError, match="differ in size"):
        JoinedSets([ImageFolder(folder), ImageFolder(folder, (96, 96))])


def test_a_label_beyond_the_counted_classes_is_damaged(folder, records):
    """As when a further process has other files than the one that counted."""
    faces = joined(folder, records)
    faces.class_counts = (3, 1)
    assert faces.load(6)[1] == 3
    with pytest.raises(ValueError, match=r"record key 2 at byte \d+: label 1, but this set has classes 0 to 0"):
        faces.load(7)


def test_a_damaged_image_of_one_set_is_replaced_by_one_of_any(folder, tmp_path):
    (tmp_path / "bad").mkdir()
    write(tmp_path / "bad", [(0, pack(0, b"no image")), (1, pack(0, face(99)))])
    sets = [ImageFolder(folder, on_bad_sample="skip"), FaceRecords(tmp_path / "bad", on_bad_sample="skip")]
    faces = JoinedSets(sets, on_bad_sample="skip")
    batch, again = faces.__getitems__([6, 7]), faces.__getitems__([0, 6])
    assert "record key 0 at byte 0: not a decodable image" in batch.damaged[0]
    stand_in = int(batch.sample_ids_B[0])
    assert stand_in != 6
    assert int(again.sample_ids_B[1]) == stand_in
    assert batch.labels_B.tolist() == [int(faces.labels[stand_in]), 3]
    assert batch.images_BHW3[1, 0, 0, 0] == 99


class TestLoader:
    def draws(self, loader, epoch):
        loader.batch_sampler.set_position(epoch)
        return torch.cat([batch.sample_ids_B for batch in loader])

    def loader(self, weights, rank=0, world_size=1, batch_size=10):
        sets = JoinedSets([SyntheticFaces(5, 40), SyntheticFaces(3, 20), SyntheticFaces(2, 30)])
        return get_dataloader(sets, batch_size, rank=rank, world_size=world_size, num_workers=0, weights=weights)

    def test_weights(self):
        """The first set once, half of the second, the third two and a half times."""
        loader = self.loader([1, 0.5, 2.5])
        assert loader.batch_sampler.n == 40 + 10 + 75
        for epoch in (0, 1):
            counts = np.bincount(self.draws(self.loader([1, 0.5, 2.5], batch_size=5), epoch), minlength=90)
            assert (counts[:40] == 1).all()
            assert sorted(counts[40:60]) == [0] * 10 + [1] * 10
            assert sorted(counts[60:]) == [2] * 15 + [3] * 15

    def test_other_images_in_another_epoch(self):
        loader = self.loader([1, 0.5, 1])
        drawn = [set(self.draws(loader, epoch).tolist()) & set(range(40, 60)) for epoch in (0, 1, 0)]
        assert drawn[0] == drawn[2] != drawn[1]

    @pytest.mark.parametrize("world_size", [2, 3])
    def test_the_same_draws_on_any_number_of_ranks(self, world_size):
        alone = self.draws(self.loader([1, 0.5, 2.5], batch_size=12), 3)
        each = 12 // world_size
        ranks = [self.draws(self.loader([1, 0.5, 2.5], r, world_size, each), 3) for r in range(world_size)]
        parts = [ids.reshape(-1, each) for ids in ranks]
        assert torch.equal(torch.stack(parts, 1).flatten(), alone)

    def test_weights_of_one_change_nothing(self):
        assert torch.equal(self.draws(self.loader([1, 1, 1]), 2), self.draws(self.loader(None), 2))

    def test_as_many_weights_as_sets(self):
        with pytest.raises(ValueError, match="2 weights for 3 sets"):
            self.loader([1, 2])

    def test_sources(self, tmp_path, folder, records):
        loader = get_dataloader([folder, records / "train.rec"], 3, num_workers=1)
        assert loader.dataset.names == ["folder", "records"]
        batches = list(loader)
        assert sorted(torch.cat([batch.labels_B for batch in batches]).tolist()) == [*LABELS, 3, 4, 4]
        people = write_map(tmp_path, [{"0": ["a", "b"]}])
        assert get_dataloader(folder, 3, num_workers=0, class_map=people).dataset.num_classes == len(FACES) - 1

    def test_a_list_written_as_one_text(self, folder):
        with pytest.raises(FileNotFoundError, match=r"several sets are written \[A,B\]"):
            get_dataloader(f"{folder},{folder}", 3)
