import dataclasses
import json
import re

import cv2
import numpy as np
import pytest
import torch

import inference
from backbones import get_model
from backbones.base import to_network_input
from embedder import detector
from embedder.align import align_face
from embedder.gallery import cosine
from embedder.photos import load_face, read_landmarks
from embedder.threshold import Threshold
from made_photos import LANDMARKS, photo_of
from model_files import save_random_model
from pair_stub import face
from utils import bars

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_random_model(folder, "rtiny", 32)
    (folder / "config.json").write_text(json.dumps({"network": "rtiny", "embedding_size": 32}))
    return folder / "model.pt"


def save(path, image):
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return str(path)


def embedding(model, image, flip=False):
    network = get_model("rtiny", num_features=32).eval()
    network.load_state_dict(torch.load(model))
    x = to_network_input(torch.from_numpy(image)[None])
    with torch.no_grad():
        out = network(x) + network(x.flip(-1)) if flip else network(x)
    return out[0].numpy()


def run(model, *argv):
    return inference.main([*map(str, argv), "--model", str(model), "--device", "cpu"])


@pytest.mark.parametrize("flip", [False, True])
def test_one_aligned_face(model, tmp_path, capsys, flip):
    path = save(tmp_path / "face.png", face(1))
    assert run(model, path, *(["--flip"] if flip else [])) == 0
    captured = capsys.readouterr()
    np.testing.assert_allclose(json.loads(captured.out), embedding(model, face(1), flip), atol=2.5e-5)
    assert "network rtiny, 32 numbers; input RGB, 112 x 112, (x / 255 - 0.5) / 0.5" in captured.err
    assert f"{path}: taken as aligned" in captured.err
    assert "warning" not in captured.err


def test_two_faces(model, tmp_path, capsys):
    paths = [save(tmp_path / f"{i}.png", face(i)) for i in (1, 2)]
    assert run(model, *paths, "--out", tmp_path / "both.npy") == 0
    first, second = (embedding(model, face(i)).astype(np.float64) for i in (1, 2))
    wanted = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    word, printed = capsys.readouterr().out.split()
    assert (word, len(printed)) == ("cosine", len("0.3386"))
    assert abs(float(printed) - wanted) < 0.5e-4 + 1e-6  # half a digit, and the rounding of embeddings in float32
    found = np.load(tmp_path / "both.npy")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [first, second], atol=2.5e-5)
    assert run(model, paths[0], paths[0]) == 0
    assert capsys.readouterr().out == "cosine 1.0000\n"


AS_TEXT = ",".join(f"{x:.3f}" for x in LANDMARKS.ravel())


def test_a_photo_is_aligned_by_its_landmarks(model, tmp_path, capsys):
    photo = photo_of(LANDMARKS)
    path = save(tmp_path / "photo.png", photo)
    assert run(model, path, "--landmarks", AS_TEXT, "--out", tmp_path / "out.json") == 0
    captured = capsys.readouterr()
    assert f"{path}: aligned by its landmarks" in captured.err
    assert captured.out == ""
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["network"] == "rtiny"
    assert report["input"] == "RGB, 112 x 112, (x / 255 - 0.5) / 0.5"
    assert report["cosine"] is None
    wanted = embedding(model, align_face(photo, np.round(LANDMARKS, 3)))
    np.testing.assert_allclose(report["images"][0]["embedding"], wanted, atol=2.5e-5)
    # The face that the photo was made from.
    original = embedding(model, cv2.GaussianBlur(face(3), (0, 0), 4)).astype(np.float64)
    assert original @ wanted / np.linalg.norm(original) / np.linalg.norm(wanted) > 0.99


@pytest.mark.parametrize("form", ["words", "lines", "json", "nested"])
def test_landmarks_from_a_file(tmp_path, form):
    pairs = LANDMARKS.round(3).tolist()
    text = {
        "words": AS_TEXT.replace(",", " "),
        "lines": "\n".join(f"{x}\t{y}" for x, y in pairs),
        "json": json.dumps(LANDMARKS.round(3).ravel().tolist()),
        "nested": json.dumps(pairs, indent=1),
    }[form]
    path = tmp_path / f"points.{'json' if form in ('json', 'nested') else 'txt'}"
    path.write_text(text)
    np.testing.assert_array_equal(read_landmarks(str(path)), pairs)


def test_an_aligned_face_of_another_size_is_resized_with_a_warning(model, tmp_path, capsys):
    path = save(tmp_path / "large.png", face(1, 224))
    assert run(model, path) == 0
    captured = capsys.readouterr()
    assert re.search(r"warning: .*large.png: resized from 224 x 224, taken as aligned", captured.err)
    np.testing.assert_allclose(json.loads(captured.out), embedding(model, face(1)), atol=1e-3)


def test_a_large_face_shrinks_by_area_as_in_training_and_a_small_one_grows_linearly(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    for image, how in ((noise, cv2.INTER_AREA), (noise[:90, :90], cv2.INTER_LINEAR)):
        found = load_face(tmp_path / save(tmp_path / "face.png", image), None).image
        np.testing.assert_array_equal(found, cv2.resize(image, (112, 112), interpolation=how))


def fails(model, capsys, *argv):
    assert run(model, *argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("inference.py: error: ")
    return last


def test_what_the_user_got_wrong_is_one_line(model, tmp_path, capsys):
    good = save(tmp_path / "face.png", face(1))
    wide = save(tmp_path / "wide.png", np.zeros((100, 150, 3), np.uint8))
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "points.txt").write_text("1 2 3 four")
    assert "150 x 100 is no aligned face; give its five landmarks" in fails(model, capsys, wide)
    assert "no image nowhere.png" in fails(model, capsys, "nowhere.png")
    assert "text.png: not a decodable image" in fails(model, capsys, tmp_path / "text.png")
    assert "--out must end in .npz or .csv, got None" in fails(model, capsys, good, good, good)
    out = ("--out", tmp_path / "many.npz")
    assert "--landmarks are for one image or two" in fails(model, capsys, good, good, *out, "--landmarks", AS_TEXT)
    assert "got face.json" in fails(model, capsys, good, "--gallery", tmp_path, "--out", "face.json")
    assert "no image, folder or list nowhere" in fails(model, capsys, "nowhere", *out)
    assert "none of 1 images could be used" in fails(model, capsys, tmp_path / "text.png", *out)
    assert "1 image a batch and 0 workers at least, got 0" in fails(model, capsys, good, *out, "--batch-size", 0)
    assert "found 3 numbers" in fails(model, capsys, good, "--landmarks", "1,2,3")
    assert "there is no such file" in fails(model, capsys, good, "--landmarks", "nowhere.txt")
    assert "'four'" in fails(model, capsys, good, "--landmarks", tmp_path / "points.txt")
    assert "once for each of 2 images" in fails(model, capsys, good, good, "--landmarks", AS_TEXT)
    assert "all landmarks lie in one point" in fails(model, capsys, good, "--landmarks", ",".join(["5"] * 10))
    assert "--out must end in .npz, .csv, .npy or .json" in fails(model, capsys, good, "--out", "face.txt")
    assert "does not hold the weights of network 'r18'" in fails(model, capsys, good, "--network", "r18")
    assert "no file nowhere.pt" in fails("nowhere.pt", capsys, good)


def test_weights_that_overflow_are_told(tmp_path, capsys):
    state = get_model("rtiny", num_features=32).state_dict()
    state["fc.weight"].fill_(3e38)
    torch.save(state, tmp_path / "model.pt")
    assert "nan or infinity" in fails(tmp_path / "model.pt", capsys, save(tmp_path / "face.png", face(1)))


def test_cosine():
    assert cosine(np.float32([3, 0]), np.float32([5, 5])) == pytest.approx(np.sqrt(0.5))
    assert np.isnan(cosine(np.zeros(2, np.float32), np.ones(2, np.float32)))


def test_help_states_the_input(capsys):
    with pytest.raises(SystemExit) as caught:
        inference.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "RGB, 112 x 112, ``(x / 255 - 0.5) / 0.5``" in out
    assert "left eye, right eye, nose" in out


def test_landmarks_in_another_order_are_an_error_that_names_it(model, tmp_path, capsys):
    path = save(tmp_path / "photo.png", photo_of(LANDMARKS))
    for wrong, message in (
        (LANDMARKS.T, "given with x1,...,x5,y1,...,y5"),
        (LANDMARKS[[1, 0, 2, 4, 3]], "given with left and right exchanged (the person's left first)"),
        (LANDMARKS[:, ::-1], "given with y before x"),
        (LANDMARKS / (240, 200), "multiply x by its width, 240, and y by its height, 200"),
    ):
        assert message in fails(model, capsys, path, "--landmarks", ",".join(map(str, wrong.ravel())))


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A folder of two people's faces, one of them damaged, and what is no image."""
    root = tmp_path_factory.mktemp("people")
    for person, n in (("ann", 3), ("bob", 2)):
        (root / person).mkdir()
        for i in range(n):
            save(root / person / f"{i}.png", face(10 * n + i))
    (root / "bob" / "broken.jpg").write_text("no image")
    (root / "bob" / "notes.md").write_text("no image")
    return root


class Stub:
    """What OpenCV's detector gives: none in a dark photo, else two faces, the larger one less sure."""

    def detect(self, image):
        points = np.stack([LANDMARKS / 3, LANDMARKS])
        boxes = np.array([[0, 0, 30, 30], [60, 40, 120, 140]])
        return detector.Faces(boxes, points, np.array([0.9, 0.8])) if image.mean() > 20 else detector.no_faces()


def test_photos_are_aligned_by_what_a_detector_finds(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inference, "open_detector", lambda path: Stub())
    photo, dark = photo_of(LANDMARKS), np.zeros((80, 90, 3), np.uint8)
    paths = [save(tmp_path / "photo.png", photo), save(tmp_path / "dark.png", dark)]
    assert run(model, *paths, "--detector", "yunet.onnx", "--out", tmp_path / "faces.npz") == 0
    assert "1 images embedded, 1 left out: " in (err := capsys.readouterr().err)
    assert "dark.png: no face was found" in err
    with np.load(tmp_path / "faces.npz") as found:
        np.testing.assert_allclose(found["embeddings"], [embedding(model, align_face(photo, LANDMARKS))], atol=2.5e-5)
    assert "no face was found" in fails(model, capsys, paths[1], "--detector", "yunet.onnx")
    assert "one of the two" in fails(model, capsys, paths[0], "--detector", "y", "--landmarks", AS_TEXT)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_gallery_names_the_nearest_people(model, people, tmp_path, capsys, kind):
    gallery = people
    if kind == "file":
        gallery = tmp_path / "gallery.npz"
        assert run(model, people, "--out", gallery) == 0
    query = save(tmp_path / "query.png", face(31))  # ann's second
    assert run(model, query, "--gallery", gallery, "--top", 2) == 0
    heading, first, second = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert heading == ["image", "rank", "person", "face", "cosine"]
    assert first == [query, "1", "ann", str(people / "ann" / "1.png"), "1.0000"]
    assert second[1] == "2"
    assert float(second[4]) < 1
    if kind == "file":
        assert "was made without --flip" in fails(model, capsys, query, "--flip", "--gallery", gallery)
        assert "add --bgr" not in (said := fails(model, capsys, query, "--bgr", "--gallery", gallery))
        assert "was made with RGB input, but here the network gets BGR: leave --bgr out" in said
        with np.load(gallery) as file:
            np.savez(gallery, **{**file, "sha256": np.array("0" * 64)})
        assert "made with another model (sha256 000000000000..." in fails(model, capsys, query, "--gallery", gallery)
        gallery.write_bytes(b"no archive")
        assert "is no .npz that inference.py --out wrote" in fails(model, capsys, query, "--gallery", gallery)
        gallery = people
    assert "--top must be at least 1" in fails(model, capsys, query, "--gallery", gallery, "--top", 0)


def test_a_search_with_a_threshold_marks_each_face_and_calls_who_is_like_nobody_unknown(
    model, people, tmp_path, capsys
):
    found = Threshold(0.9999, 0.01, (0.005, 0.02), 0.9, 300, 3000, "rtiny", True, {})
    found.write(tmp_path / "t.json")
    gallery, query = tmp_path / "gallery.npz", save(tmp_path / "query.png", face(31))  # ann's second
    assert run(model, people, "--out", gallery, "--flip") == 0
    capsys.readouterr()
    search = (query, "--gallery", gallery, "--top", 2, "--threshold", tmp_path / "t.json")
    assert run(model, *search) == 0
    captured = capsys.readouterr()
    heading, first, second = (line.split("\t") for line in captured.out.splitlines())
    assert heading[5:] == ["match"]
    assert (first[2], first[5]) == ("ann", "yes")
    assert (second[2], second[5]) == ("unknown", "no")
    assert f"with --flip, as {tmp_path / 't.json'} was made\n" in captured.err
    assert "1 % of pairs of two people reach the threshold (95 %: 0.5 to 2 %): of a stranger's" in captured.err
    assert "comparisons with 5 faces, 0.05 on average" in captured.err
    assert run(model, query, "--gallery", gallery, "--top", 1) == 0  # the gallery alone decides it, too
    captured = capsys.readouterr()
    assert f"with --flip, as {gallery} was made\n" in captured.err
    assert captured.out.endswith("\t1.0000\n")
    dataclasses.replace(found, color_order="BGR").write(tmp_path / "t.json")
    assert "t.json was made with BGR input, but here the network gets RGB: add --bgr" in fails(model, capsys, *search)
    assert "with --gallery, for each face" in fails(model, capsys, people, "--out", gallery, *search[-2:])


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_person_of_a_gallery_is_the_first_folder_below_its_root(model, tmp_path, capsys, kind):
    (tmp_path / "nest" / "anna" / "s1").mkdir(parents=True)
    query = save(tmp_path / "nest" / "anna" / "s1" / "1.png", face(1))
    gallery = tmp_path / "nest"
    if kind == "file":
        gallery = tmp_path / "gallery.npz"
        assert run(model, tmp_path / "nest", "--out", gallery, "--bgr", "--num-workers", 0) == 0
    assert run(model, query, "--gallery", gallery, "--bgr", "--num-workers", 0) == 0
    assert capsys.readouterr().out.splitlines()[1].split("\t")[2] == "anna"


@pytest.mark.parametrize("ending", [".npz", ".csv"])
def test_a_folder_becomes_one_file_with_names(model, people, tmp_path, capsys, ending):
    out = tmp_path / f"faces{ending}"
    assert run(model, people, "--out", out, "--batch-size", 2, "--num-workers", 2) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "5 images embedded, 1 left out: " in captured.err
    assert "broken.jpg: not a decodable image" in captured.err
    names = [str(people / who / f"{i}.png") for who, n in (("ann", 3), ("bob", 2)) for i in range(n)]
    if ending == ".npz":
        with np.load(out, allow_pickle=False) as found:
            assert found["names"].tolist() == names
            rows = found["embeddings"]
    else:
        heading, *lines = out.read_text().splitlines()
        assert heading.startswith("name,e0,e1,")
        assert [line.split(",")[0] for line in lines] == names
        rows = np.array([line.split(",")[1:] for line in lines], np.float32)
    wanted = [embedding(model, face(10 * n + i)) for n in (3, 2) for i in range(n)]
    np.testing.assert_allclose(rows, wanted, atol=2.5e-5)


def test_a_job_says_how_far_it_is_on_stderr_and_leaves_the_output_to_results(
    model, people, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(bars, "_LINE_EVERY_S", 0.0)
    assert run(model, people, "--gallery", people, "--top", 1, "--batch-size", 4) == 0
    captured = capsys.readouterr()
    assert [line.count("\t") for line in captured.out.splitlines()] == [4] * 6  # with the heading
    assert captured.err.startswith("embedded: 4 of 6 images, ")
    assert "embedded: 6 of 6 images, 0:00:00 left" in captured.err


def test_a_list_is_read_from_its_own_folder(model, people, tmp_path, capsys):
    (people / "list.txt").write_text("bob/1.png\n\nann/0.png\nann/nowhere.png\n")
    assert run(model, people / "list.txt", "--out", tmp_path / "two.npz") == 0
    assert "1 left out: " in capsys.readouterr().err
    with np.load(tmp_path / "two.npz") as found:
        assert found["names"].tolist() == [str(people / "bob/1.png"), str(people / "ann/0.png")]


def test_a_threshold_tells_one_person_from_two(model, tmp_path, capsys):
    first, second = (save(tmp_path / f"{i}.png", face(i)) for i in (1, 2))
    curve = {"scores": [-0.5, 0.999], "false_match_rate": [0.4, 0.0], "true_match_rate": [1.0, 0.2]}
    found = Threshold(0.999, 0.01, (0.005, 0.02), 0.9, 300, 3000, "rtiny", False, curve)
    found.write(tmp_path / "t.json")
    assert run(model, first, first, "--threshold", tmp_path / "t.json") == 0
    assert capsys.readouterr().out.splitlines() == [
        "cosine 1.0000",
        "same person: cosine 1.0000, threshold 0.9990; 1 % of pairs of two people reach the threshold (95 %: 0.5 to "
        "2 %), none of the 3,000 measured reached this cosine",
    ]
    assert run(model, first, second, "--threshold", tmp_path / "t.json", "--out", tmp_path / "out.json") == 0
    other = capsys.readouterr().out
    assert "different people" in other
    assert "at most 40 % reach this cosine" in other
    assert json.loads((tmp_path / "out.json").read_text())["same_person"] is False
    assert "found 1" in fails(model, capsys, first, "--threshold", tmp_path / "t.json")
    both = (first, second, "--threshold", tmp_path / "t.json")
    assert "t.json was made without --flip, not with it: leave --flip out" in fails(model, capsys, *both, "--flip")
    dataclasses.replace(found, model="0" * 64).write(tmp_path / "t.json")
    assert "make it again with this one" in fails(model, capsys, *both)
    dataclasses.replace(found, flip=True).write(tmp_path / "t.json")
    assert run(model, *both, "--out", tmp_path / "out.json") == 0
    assert f"with --flip, as {tmp_path / 't.json'} was made\n" in capsys.readouterr().err
    assert json.loads((tmp_path / "out.json").read_text())["flip"] is True


def test_the_names_of_other_projects_are_taken(model, tmp_path, capsys):
    path = save(tmp_path / "face.png", face(1))
    assert inference.main(["--weight", str(model), "--img", path, "--network", "rtiny", "--device", "cpu"]) == 0
    np.testing.assert_allclose(json.loads(capsys.readouterr().out), embedding(model, face(1)), atol=2.5e-5)
