import json
import math

import cv2
import numpy as np
import pytest
import torch

import eval_ijbc
from backbones import get_model
from eval.align import TEMPLATE, align_face
from utils.images import decode_rgb, to_network_input

PEOPLE, TEMPLATES_EACH, IMAGES_EACH = 5, 2, 3


def save_jpg(path, image):
    path.write_bytes(cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())


@pytest.fixture
def ijb(tmp_path):
    """Five persons with two templates of three images each; every pair of templates is compared."""
    root = tmp_path / "ijb"
    (root / "meta").mkdir(parents=True)
    (root / "loose_crop").mkdir()
    rng = np.random.default_rng(0)
    media_lines, point_lines, persons = [], [], []
    for person in range(PEOPLE):
        look = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        for t in range(TEMPLATES_EACH):
            template = 10 * person + t
            persons.append((template, person))
            for i in range(IMAGES_EACH):
                name = f"{len(media_lines)}.jpg"
                face = cv2.resize(look, (160, 150), interpolation=cv2.INTER_CUBIC).astype(float)
                face = np.clip(face + rng.normal(0, 12, face.shape), 0, 255).astype(np.uint8)
                save_jpg(root / "loose_crop" / name, face)
                points = TEMPLATE * 1.2 + 10 + rng.normal(0, 1, (5, 2))
                media_lines.append(f"{name} {template} {i // 2}")
                numbers = " ".join(f"{x:.4f}" for x in points.ravel())
                point_lines.append(f"{name} {numbers} {rng.uniform(0.5, 1):.6f}")
    pairs = [f"{a} {b} {int(p == q)}" for i, (a, p) in enumerate(persons) for b, q in persons[i + 1 :]]
    for lower in ("ijbc", "ijbb"):
        for what, lines in (
            ("face_tid_mid", media_lines),
            ("name_5pts_score", point_lines),
            ("template_pair_label", pairs),
        ):
            (root / "meta" / f"{lower}_{what}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "run" / "model.pt"
    path.parent.mkdir()
    torch.save(get_model("rtiny", num_features=64).state_dict(), path)
    return path


def arguments(model, ijb, tmp_path, *more):
    return [
        *("--model-prefix", str(model), "--image-path", str(ijb), "--result-dir", str(tmp_path / "out")),
        *("--batch-size", "8", "--device", "cpu", "--num-workers", "2", *more),
    ]


def loop_scores(model, root):
    """The whole protocol, one image and one pair at a time."""
    net = get_model("rtiny", num_features=64).eval()
    net.load_state_dict(torch.load(model))
    images = {}
    media_lines = (root / "meta" / "ijbc_face_tid_mid.txt").read_text().splitlines()
    point_lines = (root / "meta" / "ijbc_name_5pts_score.txt").read_text().splitlines()
    for media_line, point_line in zip(media_lines, point_lines, strict=True):
        name, template, media = media_line.split()
        points = np.array(point_line.split()[1:], np.float32)  # pixels at this precision, as in the field
        face = align_face(decode_rgb((root / "loose_crop" / name).read_bytes()), points[:10].reshape(5, 2))
        with torch.no_grad():
            x = to_network_input(torch.from_numpy(face)[None])
            feature = (net(x) + net(x.flip(-1)))[0].double().numpy() * points[10]
        images.setdefault(int(template), {}).setdefault(int(media), []).append(feature)
    features = {}
    for template, by_media in images.items():
        total = sum(np.mean(group, axis=0) for group in by_media.values())
        features[template] = total / np.linalg.norm(total)
    pairs = [line.split() for line in (root / "meta" / "ijbc_template_pair_label.txt").read_text().splitlines()]
    return [features[int(a)] @ features[int(b)] for a, b, _ in pairs]


@pytest.mark.parametrize("target", ["IJBC", "IJBB"])
def test_end_to_end(ijb, model, tmp_path, capsys, target):
    more = ["--network", "rtiny", "--target", target, "--job", "first try"]
    assert eval_ijbc.main(arguments(model, ijb, tmp_path, *more)) == 0
    folder = tmp_path / "out" / target
    scores = np.load(folder / "first try.npy")
    np.testing.assert_allclose(scores, loop_scores(model, ijb), atol=1e-5)
    printed = capsys.readouterr().out
    text = (folder / "first try.txt").read_text()
    assert text in printed
    assert "| " in text
    for word in ("Methods", "1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", f"first try-{target}"):
        assert word in text
    assert "Not resolved: FAR 1e-06, 1e-05, 0.0001, 0.001, 0.01 is less than one of the 40" in text
    report = json.loads((folder / "first try.json").read_text())
    assert report["network"] == "rtiny"
    assert report["target"] == target
    assert (report["genuine_pairs"], report["impostor_pairs"]) == (5, 40)
    assert list(report["tar_at_far"]) == ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1"]
    assert all(0 <= tar <= 1 for tar in report["tar_at_far"].values())
    assert report["unresolved_far"] == ["1e-06", "1e-05", "0.0001", "0.001", "0.01"]
    assert (folder / "first try.pdf").read_bytes().startswith(b"%PDF")
    assert cv2.imread(str(folder / "first try.png")) is not None


def test_network_and_size_come_from_the_run(ijb, model, tmp_path):
    (model.parent / "config.json").write_text(json.dumps({"network": "rtiny", "embedding_size": 64, "seed": 1}))
    assert eval_ijbc.main(arguments(model.parent, ijb, tmp_path)) == 0
    assert json.loads((tmp_path / "out" / "IJBC" / "insightface.json").read_text())["network"] == "rtiny"


def test_weights_saved_from_ddp_load(ijb, model):
    weights = torch.load(model)
    torch.save({"state_dict": {f"_orig_mod.module.{key}": value for key, value in weights.items()}}, model)
    net, name = eval_ijbc.load_backbone(model, "rtiny")
    assert name == "rtiny"
    assert torch.equal(net.state_dict()["conv1.weight"], weights["conv1.weight"])


def fails(capsys, argv):
    status = eval_ijbc.main(argv)
    captured = capsys.readouterr()
    assert status == 2
    assert "Traceback" not in captured.err
    progress, found, message = captured.err.rpartition("eval_ijbc.py: error: ")
    assert found
    assert progress == "" or progress.endswith("\n")
    return message


def test_wrong_network(ijb, model, tmp_path, capsys):
    message = fails(capsys, arguments(model, ijb, tmp_path, "--network", "mbf"))
    for part in ("network 'mbf' (chosen by --network)", "tensors are missing", "They fit --network rtiny"):
        assert part in message
    message = fails(capsys, arguments(model, ijb, tmp_path))
    assert "network 'r50' (chosen by the default)" in message
    (model.parent / "config.json").write_text(json.dumps({"network": "r18", "embedding_size": 64}))
    message = fails(capsys, arguments(model, ijb, tmp_path))
    assert "config.json" in message
    assert "another shape" in message
    message = fails(capsys, arguments(model, ijb, tmp_path, "--network", "r19"))
    assert "r18" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "part"),
    [("{", "not JSON"), ('{"network": 5}', "network is 5"), ('{"embedding_size": "x"}', "embedding_size is 'x'")],
)
def test_broken_config(ijb, model, tmp_path, capsys, config, part):
    (model.parent / "config.json").write_text(config)
    assert part in fails(capsys, arguments(model, ijb, tmp_path))


def test_broken_weights(ijb, model, tmp_path, capsys):
    assert "no file" in fails(capsys, arguments(tmp_path / "none.pt", ijb, tmp_path))
    (tmp_path / "empty").mkdir()
    assert f"no file {tmp_path / 'empty' / 'model.pt'}" in fails(capsys, arguments(tmp_path / "empty", ijb, tmp_path))
    torch.save({"epoch": 3}, model)
    assert "state_dict" in fails(capsys, arguments(model, ijb, tmp_path))
    model.write_bytes(b"text")
    assert "is no file of torch.save" in fails(capsys, arguments(model, ijb, tmp_path))


def test_weights_that_hold_nan(ijb, model, tmp_path, capsys):
    weights = torch.load(model)
    weights["conv1.weight"].fill_(math.nan)
    torch.save(weights, model)
    message = fails(capsys, arguments(model, ijb, tmp_path, "--network", "rtiny"))
    assert "30 of 30 embeddings hold nan" in message


def test_tree_is_checked_before_any_work(ijb, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(eval_ijbc, "embed_tree", None)
    argv = arguments(model, ijb, tmp_path, "--network", "rtiny")
    (ijb / "loose_crop" / "7.jpg").unlink()
    assert "7.jpg" in fails(capsys, argv)
    (ijb / "meta" / "ijbc_name_5pts_score.txt").unlink()
    assert "meta/ijbc_name_5pts_score.txt missing" in fails(capsys, argv)


def test_broken_photo_is_named(ijb, model, tmp_path, capsys):
    (ijb / "loose_crop" / "7.jpg").write_bytes(b"no photo")
    message = fails(capsys, arguments(model, ijb, tmp_path, "--network", "rtiny"))
    assert "loose_crop/7.jpg: not a decodable image" in message
    assert "Copy the file again" in message
    assert "ijbc_face_tid_mid.txt and _name_5pts_score.txt" in message


def test_collapsed_landmarks_are_found_before_any_work(ijb, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(eval_ijbc, "embed_tree", None)
    path = ijb / "meta" / "ijbc_name_5pts_score.txt"
    lines = path.read_text().splitlines()
    lines[4] = "4.jpg " + "30 40 " * 5 + "0.9"
    path.write_text("\n".join(lines))
    message = fails(capsys, arguments(model, ijb, tmp_path, "--network", "rtiny"))
    assert "line 5: the landmarks of 4.jpg all lie in one point" in message


def test_result_folder_is_tried_before_any_work(ijb, model, tmp_path, capsys, monkeypatch):
    argv = arguments(model, ijb, tmp_path, "--network", "rtiny")
    (tmp_path / "out").write_text("a file where the folder should be")
    monkeypatch.setattr(eval_ijbc, "embed_tree", None)
    message = fails(capsys, argv)
    assert f"cannot be written to {tmp_path / 'out' / 'IJBC'}" in message
    assert "choose another --result-dir" in message


def test_a_folder_that_takes_no_files(ijb, model, tmp_path, capsys, monkeypatch):
    def read_only(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(eval_ijbc, "embed_tree", None)
    monkeypatch.setattr(eval_ijbc.tempfile, "TemporaryFile", read_only)
    message = fails(capsys, arguments(model, ijb, tmp_path, "--network", "rtiny"))
    assert "cannot be written to" in message
    assert "Permission denied" in message


def test_scores_outlive_a_failing_curve(ijb, model, tmp_path, capsys, monkeypatch):
    def failing(*_):
        raise ValueError("no curve today")

    monkeypatch.setattr(eval_ijbc, "roc", failing)
    assert "no curve today" in fails(capsys, arguments(model, ijb, tmp_path, "--network", "rtiny"))
    folder = tmp_path / "out" / "IJBC"
    assert [path.name for path in folder.iterdir()] == ["insightface.npy"]
    assert np.load(folder / "insightface.npy").shape == (45,)


class RecordedBackbone(torch.nn.Module):
    """Gives the recorded features of the photo that it is shown, of the mirrored half when that is mirrored.

    Photo i has, on its left half alone, the colour (i % 256, i // 256, 255).
    """

    def __init__(self, halves_N2d):
        super().__init__()
        straight, mirrored = np.split(halves_N2d, 2, axis=1)
        self.features = torch.from_numpy(np.stack([straight, mirrored]))  # (2, N, d)
        self.seen = torch.zeros(self.features.shape[:2], dtype=torch.long)  # (2, N)

    def forward(self, x):
        pixels = ((x[:, :, 56] + 1) * 127.5).round().long()  # (B, 3, W)
        left, right = pixels[..., 20], pixels[..., 91]
        mirrored = (right[:, 2] == 255).long()
        assert torch.equal(left[:, 2] == 255, mirrored == 0)
        colour = torch.where(mirrored[:, None] == 1, right, left)
        index = colour[:, 0] + 256 * colour[:, 1]
        self.seen[mirrored, index] += 1
        return self.features[mirrored, index]


def test_contract_on_the_way_from_photo_to_tar(contracts, tmp_path, monkeypatch):
    recorded = np.load(contracts / "ijb_11.npz")
    n = len(recorded["image_features"])
    root = tmp_path / "ijb"
    (root / "meta").mkdir(parents=True)
    (root / "loose_crop").mkdir()
    for i in range(n):
        image = np.zeros((112, 112, 3), np.uint8)
        image[:, :56] = (i % 256, i // 256, 255)
        (root / "loose_crop" / f"{i}.png").write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    points = " ".join(str(x) for x in TEMPLATE.ravel())  # the alignment leaves the photo as it is
    columns = {
        "face_tid_mid": [
            f"{i}.png {t} {m}"
            for i, (t, m) in enumerate(zip(recorded["template_ids"], recorded["media_ids"], strict=True))
        ],
        "name_5pts_score": [
            f"{i}.png {points} {float(score)!r}" for i, score in enumerate(recorded["detector_scores"])
        ],
        "template_pair_label": [
            " ".join(map(str, row))
            for row in zip(
                *(recorded[name] for name in ("pair_template_1", "pair_template_2", "pair_label")), strict=True
            )
        ],
    }
    for what, lines in columns.items():
        (root / "meta" / f"ijbc_{what}.txt").write_text("\n".join(lines) + "\n")
    backbone = RecordedBackbone(recorded["image_features"])
    monkeypatch.setattr(eval_ijbc, "load_backbone", lambda *_: (backbone, "recorded"))
    options = eval_ijbc.parse_arguments(arguments(tmp_path / "model.pt", root, tmp_path, "--batch-size", "64"))
    report = eval_ijbc.evaluate(options)
    assert (backbone.seen == 1).all()
    np.testing.assert_allclose(report.scores, recorded["pair_scores"], rtol=0, atol=1e-6)
    assert list(report.tar) == recorded["far"].tolist()
    np.testing.assert_allclose(list(report.tar.values()), recorded["tar"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--device", "toaster"], "--device must be"),
        (["--device", "cuda:99"], "torch sees"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_wrong_options(ijb, model, tmp_path, capsys, more, part):
    assert part in fails(capsys, arguments(model, ijb, tmp_path, "--network", "rtiny", *more))


def test_unknown_target_and_help(capsys):
    with pytest.raises(SystemExit) as caught:
        eval_ijbc.main(["--model-prefix", "a", "--image-path", "b", "--target", "IJBA"])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        eval_ijbc.main(["--help"])
    assert caught.value.code == 0
    assert "RESULT_DIR/TARGET/JOB.npy" in " ".join(capsys.readouterr().out.split())
