"""The demo's files: complete, readable by the project's own readers, and the same every time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.records.layout import unpack
from data.records.reader import RecordReader
from embedder.align import TEMPLATE, similarity_transform
from eval.ijb.lists import read_ijb
from eval.pairs.bin_file import load_bin
from face_files import record
from tools import make_demo_faces
from tools.demo_faces.person import make_person
from tools.demo_faces.photo import Shot, draw_shot, next_frame, take
from tools.demo_faces.sets import aligned_faces, loose_crops, template_pairs, verification_pairs
from tools.demo_faces.shade import Scene
from tools.make_demo_faces import Recipe, main, make_demo
from utils.decode import decode_rgb

SMALL = Recipe(
    identities=3,
    images_per_identity=2,
    test_identities=2,
    test_images_per_identity=4,
    ijb_identities=2,
    ijb_images_per_identity=5,
    ijb_impostor_pairs=6,
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "demo"
    assert make_demo(out, SMALL, workers=1)
    return out


def test_the_same_parameters_give_the_same_bytes_with_any_number_of_workers(demo: Path, tmp_path: Path) -> None:
    make_demo(tmp_path / "again", SMALL, workers=2)
    assert contents(tmp_path / "again") == contents(demo)


def test_another_seed_gives_other_people() -> None:
    assert aligned_faces(0, "train", 0, 1) != aligned_faces(1, "train", 0, 1)
    assert aligned_faces(0, "train", 0, 1) != aligned_faces(0, "pairs", 0, 1)
    assert aligned_faces(0, "train", 0, 2)[:1] == aligned_faces(0, "train", 0, 1)


def test_training_records(demo: Path) -> None:
    assert (demo / "train" / "property").read_text().strip() == "3,112,112"
    keys = [int(line.split()[0]) for line in (demo / "train" / "train.idx").read_text().splitlines()]
    reader = RecordReader(demo / "train" / "train.rec")
    labels = []
    for key in keys[1:]:
        header, encoded = unpack(record(reader, key))
        if len(encoded):
            assert decode_rgb(encoded).shape == (112, 112, 3)
            labels.append(int(np.ravel(header.label)[0]))
    assert labels == [0, 0, 1, 1, 2, 2]


def test_verification_set(demo: Path) -> None:
    pairs = load_bin(demo / "train" / "demo.bin")
    assert len(pairs.encoded) == 2 * len(pairs.issame) == 8
    assert list(pairs.issame) == [True, False, True, False]
    assert all(decode_rgb(encoded).shape == (112, 112, 3) for encoded in pairs.encoded)
    assert len({bytes(encoded) for encoded in pairs.encoded}) == 8


def test_ijb_tree(demo: Path) -> None:
    tree = read_ijb(demo / "IJBC")
    assert len(tree.names) == len(list((demo / "IJBC" / "loose_crop").iterdir())) >= 10
    for name, landmarks in zip(tree.names, tree.landmarks, strict=True):
        image = cv2.imread(str(demo / "IJBC" / "loose_crop" / name))
        assert image is not None
        assert image.shape[0] == image.shape[1]
        assert 150 <= image.shape[0] <= 250
        assert (landmarks > 0).all()
        assert (landmarks < image.shape[0] - 1).all()
    assert ((tree.detector_scores > 0) & (tree.detector_scores <= 1)).all()
    sizes = np.unique(tree.template_ids, return_counts=True)[1]
    assert sizes.max() <= 6
    # A medium belongs to one template.
    media = set(zip(tree.media_ids.tolist(), tree.template_ids.tolist(), strict=True))
    assert len(media) == len(set(tree.media_ids.tolist()))


def test_sheet(demo: Path) -> None:
    sheet = cv2.imread(str(demo / "faces.png"))
    assert sheet is not None
    assert sheet.shape == (5 * 116 + 4, 4 * 116 + 4, 3)


@pytest.mark.parametrize("seed", range(4))
def test_landmarks_lie_near_the_template(seed: int) -> None:
    person = make_person(np.random.default_rng(seed))
    landmarks = take(person, Shot(Scene()), 176, 54.0, 0.36).landmarks
    moved = landmarks @ similarity_transform(landmarks)[:, :2].T + similarity_transform(landmarks)[:, 2]
    assert np.abs(moved - TEMPLATE).max() < 5  # people differ; a detector's template is their mean
    assert np.abs(moved - TEMPLATE).mean() < 2.5


def test_landmarks_follow_the_surface() -> None:
    """The pupil of a face that looks straight ahead is the darkest spot round the eye's landmark."""
    for seed in range(3):
        person = make_person(np.random.default_rng(seed))
        picture = take(person, Shot(Scene(yaw=0.15, roll=0.25)), 352, 108.0)
        grey = cv2.GaussianBlur(picture.image.astype(np.float32).mean(2), (0, 0), 2.5)
        for x, y in picture.landmarks[:2]:
            window = grey[round(y) - 9 : round(y) + 10, round(x) - 9 : round(x) + 10]
            row, column = np.unravel_index(window.argmin(), window.shape)
            assert np.hypot(row - 9, column - 9) < 8


def test_pictures_of_one_person_differ_and_frames_of_a_video_differ_less() -> None:
    person = make_person(np.random.default_rng(1))
    rng = np.random.default_rng(2)
    first = draw_shot(rng, person)
    frame, other = next_frame(first, rng), draw_shot(rng, person)
    images = [take(person, shot, 96, 30.0).image.astype(np.float32) for shot in (first, frame, other)]
    near, far = (np.abs(images[0] - image).mean() for image in images[1:])
    assert 0 < near < far


def test_hidden_and_blurred_faces_score_lower() -> None:
    person = make_person(np.random.default_rng(1))
    shot = draw_shot(np.random.default_rng(2), person)
    clear = Shot(shot.scene)
    assert take(person, clear, 64, 20.0).score > take(person, Shot(shot.scene, "hand"), 64, 20.0).score
    assert take(person, clear, 64, 20.0).score > take(person, Shot(shot.scene, blur=0.05), 64, 20.0).score


@pytest.mark.parametrize("occluder", ["sunglasses", "mask", "hand", "scarf", "thing"])
def test_every_occluder_changes_the_face(occluder: str) -> None:
    person = make_person(np.random.default_rng(0))
    for seed in range(1000):
        shot = draw_shot(np.random.default_rng(seed), person)
        if shot.occluder == occluder:
            break
    mood = replace(shot.scene.mood, mask=None)
    bare = replace(shot, occluder="none", scene=replace(shot.scene, glasses="none", mood=mood))
    changed = np.abs(take(person, shot, 96, 30.0).image.astype(int) - take(person, bare, 96, 30.0).image.astype(int))
    assert (changed.max(2) > 12).mean() > 0.02


def test_templates_hold_videos_and_stills() -> None:
    crops = loose_crops(0, 0, 12)
    of_medium = np.bincount([crop.medium for crop in crops])
    assert of_medium.min() == 1
    assert of_medium.max() > 1


@pytest.mark.parametrize(("identities", "per_identity"), [(2, 4), (3, 8), (20, 8), (23, 12), (60, 20)])
def test_pairs_use_every_image_once_and_every_tenth_is_balanced(identities: int, per_identity: int) -> None:
    pairs = verification_pairs(identities, per_identity, np.random.default_rng(0))
    images = [image for a, b, _ in pairs for image in (a, b)]
    assert sorted(images) == [(i, k) for i in range(identities) for k in range(per_identity)]
    assert all((a[0] == b[0]) == same for a, b, same in pairs)
    for tenth in np.array_split([same for _, _, same in pairs], 10):
        assert abs(int(tenth.sum()) * 2 - len(tenth)) <= 1


def test_template_pairs_hold_all_genuine_ones() -> None:
    owners = np.array([0, 0, 0, 1, 1, 2])
    rows = template_pairs(owners, 5, np.random.default_rng(0))
    assert len(rows) == 4 + 5
    assert all((owners[a - 1] == owners[b - 1]) == bool(same) for a, b, same in rows)
    assert len({(a, b) for a, b, _ in rows.tolist()}) == len(rows)
    assert len(template_pairs(owners, 10**6, np.random.default_rng(0))) == 15


def test_a_complete_folder_is_used_again(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(demo)
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in vars(SMALL).items() if key != "version"]
    assert main([str(demo), *flags]) == 0
    assert "already there" in capsys.readouterr().out
    assert contents(demo) == before


def test_other_contents_are_not_touched(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(demo), "--seed=5"])
    assert "seed = 0, asked" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="was not made by this command"):
        make_demo(tmp_path, SMALL)
    assert contents(tmp_path) == {"mine.txt": b"keep"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr(make_demo_faces, "_write_ijb", stop)
    with pytest.raises(error):
        make_demo(tmp_path / "demo", SMALL, workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--identities=0"], "--identities must be at least 1, got 0"),
        (["--test-identities=1"], "--test-identities must be at least 2, got 1"),
        (["--test-images-per-identity=6"], "multiple of 4"),
        (["--workers=0"], "--workers must be at least 1"),
        (["--seed=-1"], "--seed must be at least 0"),
        (["--identities=many"], "invalid int value"),
    ],
)
def test_bad_arguments(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "demo"), *flags])
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_older_opencv_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "triangleRasterize")
    with pytest.raises(ValueError, match="takes OpenCV 5, found"):
        make_demo(tmp_path / "demo", SMALL)


def test_record_of_parameters(demo: Path) -> None:
    assert json.loads((demo / "demo.json").read_text()) == vars(SMALL)
