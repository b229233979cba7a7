import hashlib
import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.records.writer import write_face_records
from eval.pairs.bin_file import load_bin
from eval.pairs.protocol import pair_loader
from eval.pairs.sets import load_list
from made_faces import contents, encode, make_folder
from tools.make_bin import main
from tools.parts.pair_sampling import sample_pairs
from utils.decode import Resized, decode_rgb


def run(*argv):
    return main([str(arg) for arg in argv])


def loads_as_insightface_loads(path):
    """The load of insightface's verification code: bytes that a decoder takes, and flags."""
    with path.open("rb") as file:
        bins, issame = pickle.load(file, encoding="bytes")
    assert all(isinstance(image, bytes) for image in bins)
    return bins, issame


@pytest.fixture
def faces(tmp_path):
    people = {f"p{i}": {f"p{i}_{k:04d}.jpg": encode(20 * i + k) for k in range(1, 5)} for i in range(6)}
    people["big"] = {"big_0001.png": encode(200, (250, 250), ".png"), "big_0002.jpg": encode(210)}
    return make_folder(tmp_path / "faces", people)


def image_of(faces, name, number):
    return (faces / name / f"{name}_{number:04d}.jpg").read_bytes()


class TestLfwList:
    @pytest.mark.parametrize("header", ["", "2\t1\n", "2\n", "4\n"])
    def test_both_forms_of_line(self, faces, tmp_path, header):
        text = header + "p0\t1\t2\np1\t3\tp2\t4\np3\t1\t4\np0\t1\tp5\t2\n"
        (tmp_path / "pairs.txt").write_text(text)
        assert run(tmp_path / "pairs.txt", tmp_path / "my.bin", "--root", faces) == 0
        pairs = load_bin(tmp_path / "my.bin")
        named = [("p0", 1), ("p0", 2), ("p1", 3), ("p2", 4), ("p3", 1), ("p3", 4), ("p0", 1), ("p5", 2)]
        assert pairs.encoded == [image_of(faces, *image) for image in named]
        assert pairs.issame.tolist() == [True, False, True, False]
        bins, issame = loads_as_insightface_loads(tmp_path / "my.bin")
        assert (bins, issame) == (pairs.encoded, [True, False, True, False])

    def test_another_size_is_resized(self, faces, tmp_path, capsys):
        (tmp_path / "pairs.txt").write_text("big 1 2\nbig 1 p0 1\n")
        assert run(tmp_path / "pairs.txt", tmp_path / "my.bin", "--root", faces) == 0
        pairs = load_bin(tmp_path / "my.bin")
        assert [decode_rgb(image).shape for image in pairs.encoded] == [(112, 112, 3)] * 4
        assert pairs.encoded[0] == pairs.encoded[2]
        assert "1 images had another size and were resized: are the faces aligned?" in capsys.readouterr().out

    def test_what_decoding_changes_is_said(self, faces, tmp_path, capsys):
        clear = cv2.imencode(".png", np.full((112, 112, 4), 90, np.uint8))[1].tobytes()
        (faces / "big" / "big_0004.png").write_bytes(clear)
        (tmp_path / "pairs.txt").write_text("big 4 2\nbig 4 p0 1\n")
        assert run(tmp_path / "pairs.txt", tmp_path / "my.bin", "--root", faces) == 0
        assert "1 images with transparency, which is left out" in capsys.readouterr().out

    @pytest.mark.parametrize("ending", [".tif", ".pgm", ".ppm", ".jp2"])
    def test_every_kind_of_image_is_resized_as_evaluation_does(self, faces, tmp_path, capsys, ending):
        written = {".pgm": ".ppm"}.get(ending, ending)
        (faces / "big" / f"big_0003{ending}").write_bytes(encode(90, (90, 60), written))
        (tmp_path / "pairs.txt").write_text("big 3 2\nbig 3 p0 1\n")
        assert run(tmp_path / "pairs.txt", tmp_path / "my.bin", "--root", faces) == 0
        note = "1 images had another size and were resized, 1 of them not square before and distorted: are the faces"
        assert note in capsys.readouterr().out
        resized = Resized()
        listed = load_list(tmp_path / "pairs.txt", root=faces).encoded
        evaluated = pair_loader(listed, resized=resized)(0, 4)
        assert (resized.images, resized.not_square) == ({0, 2}, {0, 2})
        kept = pair_loader(load_bin(tmp_path / "my.bin").encoded, resized=resized)(0, 4)
        assert len(resized.images) == 2
        assert np.abs(evaluated.astype(int) - kept).mean() < 3  # JPEG

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no pairs in it"),
            ("10 300\n", "no pairs in it"),
            (
                "p0 1 2\np0 1\n",
                "line 2: expected two paths and a flag, or a name and numbers like",
            ),
            ("p0 1 x\n", "line 1: no image"),
            ("p0 1 p1 2 p2\n", "line 1: expected two paths"),
            ("10\t300\np0 1 2\n", "its first line announces 6000 pairs, but 1 follow"),
            (
                "p0 1 9\np7 1 2\n",
                "3 of 4 images are missing: p0/p0_0009, p7/p7_0001, p7/p7_0002; paths start at",
            ),
        ],
    )
    def test_refused(self, faces, tmp_path, capsys, text, message):
        (tmp_path / "pairs.txt").write_text(text)
        assert run(tmp_path / "pairs.txt", tmp_path / "my.bin", "--root", faces) == 2
        error = capsys.readouterr().err
        assert error.startswith("make_bin: error: ")
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "my.bin").exists()

    def test_an_image_that_is_none(self, faces, tmp_path, capsys):
        (faces / "p1" / "p1_0002.jpg").write_bytes(b"broken")
        (tmp_path / "pairs.txt").write_text("p0 1 2\np1 1 2\n")
        assert run(tmp_path / "pairs.txt", tmp_path / "my.bin", "--root", faces) == 2
        assert "image 2 of pair 2: not a decodable image" in capsys.readouterr().err
        assert not (tmp_path / "my.bin").exists()


class TestCsv:
    def test_pairs(self, faces, tmp_path):
        text = "path1,path2,issame\np0/p0_0001.jpg,p0/p0_0002.jpg,1\np1/p1_0001.jpg,p2/p2_0001.jpg,0\n"
        (faces / "pairs.csv").write_text(text)
        assert run(faces / "pairs.csv", tmp_path / "my.bin") == 0
        pairs = load_bin(tmp_path / "my.bin")
        named = [("p0", 1), ("p0", 2), ("p1", 1), ("p2", 1)]
        assert pairs.encoded == [image_of(faces, *image) for image in named]
        assert pairs.issame.tolist() == [True, False]

    @pytest.mark.parametrize(
        ("text", "message"), [("", "no pairs in it"), ("a,b,maybe\n,,\n", "line 1"), ("x,y,1", "x")]
    )
    def test_refused(self, faces, tmp_path, capsys, text, message):
        (faces / "pairs.csv").write_text(text)
        assert run(faces / "pairs.csv", tmp_path / "my.bin") == 2
        assert message in capsys.readouterr().err


class TestDrawn:
    def check(self, path, pairs, identity_of):
        found = load_bin(path)
        assert len(found.issame) == pairs
        assert found.issame.tolist() == [i % 2 == 0 for i in range(pairs)]
        seen = set()
        for i, same in enumerate(found.issame):
            a, b = found.encoded[2 * i : 2 * i + 2]
            assert a != b
            assert (identity_of[a] == identity_of[b]) == same
            assert frozenset((a, b)) not in seen
            seen.add(frozenset((a, b)))

    def test_from_a_folder(self, faces, tmp_path):
        identity_of = {path.read_bytes(): path.parent.name for path in faces.glob("p*/*")}
        for path in (faces / "big").iterdir():
            path.unlink()
        for name in ("one", "two"):
            assert run(faces, tmp_path / f"{name}.bin", "--pairs", 30, "--seed", 3) == 0
        self.check(tmp_path / "one.bin", 30, identity_of)
        assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "two.bin").read_bytes()
        assert run(faces, tmp_path / "three.bin", "--pairs", 30, "--seed", 4) == 0
        assert (tmp_path / "three.bin").read_bytes() != (tmp_path / "one.bin").read_bytes()

    @pytest.mark.parametrize("by_file", [True, False])
    def test_from_records(self, tmp_path, by_file):
        images = [[encode(20 * i + k) for k in range(4)] for i in range(8)]
        write_face_records(tmp_path / "set", images)
        source = tmp_path / "set" / "train.rec" if by_file else tmp_path / "set"
        assert run(source, tmp_path / "my.bin", "--pairs", 41) == 0
        self.check(tmp_path / "my.bin", 41, {data: i for i, of_one in enumerate(images) for data in of_one})

    def test_from_real_faces(self, shared_data, tmp_path):
        assert run(shared_data / "lfw_small_im2rec", tmp_path / "my.bin", "--pairs", 600) == 0
        assert len(load_bin(tmp_path / "my.bin").issame) == 600

    def test_too_many(self, faces, tmp_path, capsys):
        assert run(faces, tmp_path / "my.bin", "--pairs", 1000) == 2
        error = capsys.readouterr().err
        assert "1000 pairs take 500 genuine ones, but 26 images of 7 identities, 7 of them with two images" in error
        assert "give 37: ask for fewer pairs" in error
        assert contents(tmp_path).keys() == {f"faces/{path.relative_to(faces)}" for path in faces.glob("*/*")}

    def test_few_genuine_pairs_among_many_impostors(self, faces, tmp_path, capsys):
        assert run(faces, tmp_path / "my.bin", "--pairs", 200, "--impostors", 180) == 0
        assert "200 pairs, 20 genuine and 180 impostor" in capsys.readouterr().out
        same = load_bin(tmp_path / "my.bin").issame.reshape(10, 20)
        assert same.sum(1).tolist() == [2] * 10  # of each fold
        assert run(faces, tmp_path / "no.bin", "--pairs", 230, "--impostors", 180) == 2
        assert "230 pairs take 50 genuine ones" in (error := capsys.readouterr().err)
        assert "give 37: ask for fewer pairs, or for more of two persons (--impostors 193), or give more" in error
        assert run(faces, tmp_path / "all.bin", "--pairs", 230, "--impostors", 193) == 0


class TestMistakes:
    def test_arguments(self, faces, tmp_path, capsys):
        (tmp_path / "pairs.txt").write_text("p0 1 2\n")
        (faces / "pairs.csv").write_text("p0/p0_0001.jpg,p0/p0_0002.jpg,1\n")
        (tmp_path / "old.bin").write_bytes(b"old")
        out = tmp_path / "my.bin"
        for argv, message in (
            ((tmp_path / "none", out), "no such file or folder"),
            ((faces, out), "--pairs N is missing"),
            ((faces, out, "--pairs", 1), "--pairs must be 2 to"),
            ((faces, out, "--impostors", 5), "give --pairs N, too"),
            ((faces, out, "--pairs", 5, "--impostors", 6), "--impostors must be 0 to 5, of --pairs 5, got 6"),
            ((faces, out, "--pairs", 5, "--impostors", -1), "--impostors must be 0 to 5, of --pairs 5, got -1"),
            ((faces, out, "--pairs", 10, "--root", faces), "--root belongs to a list"),
            ((tmp_path / "pairs.txt", out), "--root gives another folder"),
            ((tmp_path / "pairs.txt", out, "--root", tmp_path / "none"), "no such folder"),
            ((tmp_path / "pairs.txt", out, "--root", faces, "--pairs", 5), "--pairs draws from a folder or records"),
            ((tmp_path / "pairs.txt", tmp_path / "my.pkl", "--root", faces), "ending .bin"),
            ((tmp_path / "pairs.txt", tmp_path / "old.bin", "--root", faces), "exists already"),
            ((faces / "p0" / "p0_0001.jpg", out, "--root", faces), "p0_0001.jpg, line 1: a zero byte"),
            ((tmp_path / "pairs.txt", tmp_path / "no" / "my.bin", "--root", faces), "no such folder for my.bin"),
        ):
            assert run(*argv) == 2
            error = capsys.readouterr().err
            assert message in error
            assert error.startswith("make_bin: error: ")
            assert error.count("\n") == 1
        assert (tmp_path / "old.bin").read_bytes() == b"old"
        assert not out.exists()


class TestSampling:
    @settings(max_examples=150, deadline=None)
    @given(
        counts=st.lists(st.integers(1, 9), min_size=2, max_size=12), pairs=st.integers(2, 60), seed=st.integers(0, 9)
    )
    def test_balanced_and_without_repeats_or_an_error(self, counts, pairs, seed):
        labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 3, counts))
        possible = sum(n * (n - 1) // 2 for n in counts)
        digest = lambda index: index.to_bytes(4, "little")
        if possible < (pairs + 1) // 2:
            with pytest.raises(ValueError, match=f"give {possible}: ask for fewer"):
                sample_pairs(labels, pairs, seed, digest)
            return
        try:
            found = sample_pairs(labels, pairs, seed, digest)
        except ValueError:
            total = len(labels) * (len(labels) - 1) // 2
            assert total - possible < pairs // 2
            return
        assert [same for _, _, same in found] == [i % 2 == 0 for i in range(pairs)]
        assert all((labels[a] == labels[b]) == same and a != b for a, b, same in found)
        assert len({frozenset(pair[:2]) for pair in found}) == pairs
        genuine = [labels[a] for a, _, same in found if same]
        with_two = sum(n > 1 for n in counts)
        assert len(set(genuine[:with_two])) == min(with_two, len(genuine))

    def test_images_that_are_the_same_to_the_byte_are_no_pair(self):
        labels = np.array([0, 0, 0, 1, 1, 1])
        digest = lambda index: b"twin" if index in (0, 1, 3) else bytes([index])
        found = sample_pairs(labels, 10, 0, digest)
        assert all(digest(a) != digest(b) for a, b, _ in found)
        with pytest.raises(ValueError, match="give 5"):
            sample_pairs(labels, 12, 0, digest)

    def test_one_identity(self):
        with pytest.raises(ValueError, match="1 impostor ones, but 3 images of 1 identities"):
            sample_pairs(np.zeros(3, np.int64), 2, 0, lambda i: bytes([i]))

    def test_large_sets_take_few_draws(self):
        labels = np.repeat(np.arange(200_000), 3)
        asked = []

        def digest(index):
            asked.append(index)
            return hashlib.md5(index.to_bytes(8, "little")).digest()

        assert len(sample_pairs(labels, 600, 0, digest)) == 600
        assert len(asked) == 1200

    def test_one_identity_with_very_many_images(self):
        labels = np.repeat([0, 1], [50_000, 2])
        assert len(sample_pairs(labels, 500, 0, lambda i: i.to_bytes(4, "little"))) == 500
