import json
import logging
import os
import shutil
import tarfile

import numpy as np
import pytest

import data.shards.index as index_module
from data.joined import JoinedSets
from data.shards.faces import FaceShards
from data.shards.index import index_name
from data.storage import LocalFiles
from dataset import get_dataloader, join_sources, open_faces
from face_files import FACES, LABELS, VALUES, contents, face, make_image_folder
from tar_files import samples, write_shards, write_tar


@pytest.fixture
def folder(tmp_path):
    return write_shards(tmp_path / "set")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MHS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def index_of(folder):
    (path,) = folder.glob("shards-*.index")
    return path


@pytest.fixture
def scans(monkeypatch):
    """Counts the shards that are scanned."""
    seen = []
    scan = index_module.scan_shard
    monkeypatch.setattr(index_module, "scan_shard", lambda *job: seen.append(job[0]) or scan(*job))
    return seen


def test_images_and_labels_in_the_order_of_the_shards(folder):
    for source in (folder, f"{folder}/train-{{0..1}}.tar", f"{folder}/train-*.tar"):
        assert contents(open_faces(source)) == (VALUES, LABELS)
    assert contents(open_faces(folder / "train-1.tar")) == (VALUES[3:], LABELS[3:])


def test_names_in_place_of_labels_are_numbered_as_folders_are(tmp_path):
    faces = open_faces(write_shards(tmp_path, ["b", "c", "a"]))
    assert contents(faces) == (VALUES, [1, 1, 2, 0, 0, 0])
    assert faces.class_names() == ["a", "b", "c"]


def test_numbers_with_zeros_in_front_are_numbers_unless_a_label_is_a_name(tmp_path):
    assert open_faces(write_shards(tmp_path / "a", ["007", "10", "2"])).labels.tolist() == [7, 7, 10, 2, 2, 2]
    named = open_faces(write_shards(tmp_path / "b", ["007", "7", "x"]))
    assert named.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert named.class_names() == ["007", "7", "x"]


def test_classes_beside_numbered_shards_have_names(folder):
    (folder / "classes.json").write_text('["x", "y", null]')
    assert open_faces(folder).class_names() == ["x", "y", None]


def test_an_error_names_shard_member_and_offset(folder):
    faces = FaceShards(folder, (20, 20))
    with pytest.raises(ValueError, match=r"train-1\.tar: image '20\.png' at byte 512: the image's \(height"):
        faces.load(3)
    with pytest.raises(IndexError):
        faces.read(6)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_every_image_once(folder, workers):
    (batch,) = get_dataloader(str(folder), 6, num_workers=workers, shuffle_chunk=2)
    order = batch.sample_ids_B.argsort()
    assert batch.images_BHW3[order][:, 5, 5, 0].tolist() == VALUES
    assert batch.labels_B[order].tolist() == LABELS


def test_joined_sets_weights_and_class_maps_take_shards(folder, tmp_path):
    other = make_image_folder(tmp_path / "faces")
    (tmp_path / "map.json").write_text(json.dumps([{"set": 2, "faces": "a"}]))
    joined = join_sources([str(folder), str(other)], class_map=tmp_path / "map.json")
    assert isinstance(joined, JoinedSets)
    assert joined.labels.tolist() == [*LABELS, 2, 2, 3, 4, 4, 4]
    loader = get_dataloader([f"{folder}/train-*.tar", str(other)], 2, weights=[2, 1], num_workers=0)
    assert loader.batch_sampler.n == 18
    assert loader.dataset.names == ["set", "faces"]


def test_single_shards_in_a_list_are_refused(folder):
    with pytest.raises(ValueError, match=r"are two sets.*train-\{0000\.\.0099\}"):
        join_sources([f"{folder}/train-0.tar", f"{folder}/train-1.tar"])


def test_identity_folders_with_a_tar_beside_them_stay_folders(tmp_path):
    write_tar(make_image_folder(tmp_path) / "all.tar", samples())
    assert open_faces(tmp_path).class_names() == ["a", "b", "c"]


class TestDamage:
    @pytest.fixture
    def damaged(self, tmp_path):
        return write_tar(tmp_path / "set" / "a.tar", [*samples(), ("z.png", face(1)), ("y.cls", b"1")]).parent

    def test_stops_with_the_first_and_their_number(self, damaged):
        with pytest.raises(ValueError, match=r"sample 'z' at byte \d+ has no label .*first of 2 such samples"):
            open_faces(damaged).labels  # noqa: B018

    def test_or_leaves_them_out(self, damaged):
        faces = open_faces(damaged, on_bad_sample="skip")
        assert faces.labels.tolist() == [*LABELS, -1]
        assert "2 samples are left out, the first" in faces.warning
        faces.unusable = faces.find_unusable()
        batch = faces.__getitems__([0, 6])
        assert batch.labels_B.tolist()[0] == 0
        assert len(batch.damaged) == 1

    def test_a_shard_that_shrinks_while_it_is_read_is_an_error(self, folder):
        faces = open_faces(folder)
        with (folder / "train-1.tar").open("r+b") as file:
            file.truncate(600)
        with pytest.raises(ValueError, match=r"train-1\.tar: it has become shorter"):
            faces.load(3)

    def test_no_image_at_all(self, tmp_path):
        write_tar(tmp_path / "a.tar", [("README", b"x")])
        with pytest.raises(ValueError, match="no image in 1 shards; expected KEY"):
            open_faces(tmp_path)


class TestIndex:
    def test_is_made_once(self, folder, scans):
        open_faces(folder)
        assert len(scans) == 2
        assert index_of(folder).name == index_name([str(folder / f"train-{i}.tar") for i in (0, 1)])
        assert contents(open_faces(folder)) == (VALUES, LABELS)
        assert len(scans) == 2

    def test_fits_a_copy_that_keeps_the_times(self, folder, tmp_path, scans):
        open_faces(folder)
        shutil.copytree(folder, tmp_path / "copy")
        assert contents(open_faces(tmp_path / "copy")) == (VALUES, LABELS)
        assert len(scans) == 2
        os.utime(tmp_path / "copy" / "train-1.tar", (1, 1))
        for _ in range(2):
            assert contents(open_faces(tmp_path / "copy")) == (VALUES, LABELS)
            assert len(scans) == 4

    def test_a_label_changed_in_place_is_noticed_wherever_it_lies(self, folder):
        for name in ("train-0.tar", "train-1.tar"):
            with tarfile.open(folder / name) as tar:
                places = [member.offset_data for member in tar if member.name.endswith(".cls")]
            for second, at in enumerate(places, 1):
                before = open_faces(folder).labels.tolist()
                with (folder / name).open("r+b") as file:
                    file.seek(at)
                    file.write(b"9")
                os.utime(folder / name, (second, second))  # however coarse the clock of the file system
                assert sum(a != b for a, b in zip(open_faces(folder).labels.tolist(), before, strict=True)) == 1

    @pytest.mark.parametrize("length", ["same", "another"])
    def test_of_other_shards_is_noticed_and_made_again(self, folder, scans, caplog, length):
        open_faces(folder)
        swapped = [[face(99), face(98)], FACES[1], FACES[2]]
        members = [(name, data) for name, data in samples() if name.startswith("0")]
        old = (folder / "train-0.tar").read_bytes()
        members[0] = ("00.png", swapped[0][0])
        if length == "another":
            members += [("09.png", face(97)), ("09.cls", b"0")]
        path = write_tar(folder / "train-0.tar", members)
        new = path.read_bytes()
        path.write_bytes(new if length == "another" else new.ljust(len(old), b"\0")[: len(old)])
        os.utime(path, (1, 1))
        with caplog.at_level(logging.WARNING, "mhs_arcface"):
            assert contents(open_faces(folder))[0][0] == 99
        assert "train-0.tar has" in caplog.text
        assert len(scans) == 4

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[:-1],
            lambda data: data + b"\0",
            lambda data: b"no json\n" + data,
            lambda data: data.replace(b"shards 2", b"shards 3"),
            lambda data: data[:-48] + b"\xff" * 48,
            lambda data: data.replace(b'"names": null', b'"names": [[]]'),
        ],
    )
    def test_that_is_damaged_is_made_again(self, folder, damage, scans):
        open_faces(folder)
        path = index_of(folder)
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        assert contents(open_faces(folder)) == (VALUES, LABELS)
        assert len(scans) == 4
        assert path.read_bytes() == whole

    def test_goes_where_the_user_says(self, folder, cache, scans):
        open_faces(folder)
        open_faces(folder)
        assert len(list(cache.iterdir())) == 1
        assert not list(folder.glob("*.index"))
        assert len(scans) == 2

    def test_is_made_in_memory_where_nothing_can_be_written(self, folder, monkeypatch, caplog):
        def refuse(path):
            raise PermissionError(13, "not here", str(path))

        monkeypatch.setattr(index_module, "_locked", refuse)
        with caplog.at_level(logging.WARNING, "mhs_arcface"):
            assert contents(open_faces(folder)) == (VALUES, LABELS)
        assert "set MHS_CACHE" in caplog.text

    def test_of_large_shards_is_made_by_several_processes(self, folder, monkeypatch):
        alone = open_faces(folder).index
        index_of(folder).unlink()
        monkeypatch.setattr(index_module, "_POOL_FROM", 0)
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        together = open_faces(folder).index
        assert all(np.array_equal(a, b) for a, b in zip(alone[1:5], together[1:5], strict=True))

    def test_another_process_waits_for_the_one_that_makes_it(self, folder, monkeypatch, scans):
        inner = index_module._locked

        def slow(path):  # meanwhile another one has made it
            monkeypatch.setattr(index_module, "_locked", inner)
            open_faces(folder)
            return inner(path)

        monkeypatch.setattr(index_module, "_locked", slow)
        assert contents(open_faces(folder)) == (VALUES, LABELS)
        assert len(scans) == 2


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("data.storage._MOST_OPEN", 2)
    for i in range(5):
        write_tar(tmp_path / f"{i}.tar", samples()[:2])
    faces = open_faces(tmp_path)
    assert isinstance(faces.store, LocalFiles)
    for _ in range(2):
        assert contents(faces)[0] == [10] * 5
    assert len(faces.store._opened.files) == 2
