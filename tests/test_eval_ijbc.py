import json
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch

import eval_ijbc
from benchmarks import ijb_reference
from embedder.align import TEMPLATE
from embedder.load import TorchEmbedder, load_embedder
from ijb_tree import PEOPLE, arguments, loop_scores, loop_templates, make_model, make_tree


@pytest.fixture
def ijb(tmp_path):
    return make_tree(tmp_path / "ijb")


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "run" / "model.pt")


@pytest.mark.numeric
@pytest.mark.parametrize("target", ["IJBC", "IJBB"])
def test_end_to_end(ijb, model, tmp_path, capsys, target):
    more = ["--network", "rtiny", "--target", target, "--job", "first try"]
    assert eval_ijbc.main(arguments(model, ijb, tmp_path, *more)) == 0
    folder = tmp_path / "out" / target
    scores = np.load(folder / "first try.npy")
    np.testing.assert_allclose(scores, loop_scores(model, ijb), atol=1e-5)
    captured = capsys.readouterr()
    text = (folder / "first try.txt").read_text()
    assert text in captured.out
    labels = np.loadtxt(ijb / "meta" / "ijbc_template_pair_label.txt", dtype=int)[:, 2]
    assert text.startswith(ijb_reference.tar_table(f"first try-{target}", labels, scores) + "\n")
    assert "Mode: straight + mirrored, norm used, detector score used" in text
    for word in ("Methods", "1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", f"first try-{target}"):
        assert word in text
    assert "Not resolved: FAR 1e-06, 1e-05, 0.0001, 0.001, 0.01. Each is less than one of the 40" in text
    report = json.loads((folder / "first try.json").read_text())
    assert report["network"] == "rtiny"
    assert report["target"] == target
    assert (report["genuine_pairs"], report["impostor_pairs"]) == (5, 40)
    assert list(report["tar_at_far"]) == ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1"]
    assert all(0 <= tar <= 1 for tar in report["tar_at_far"].values())
    assert report["unresolved_far"] == ["1e-06", "1e-05", "0.0001", "0.001", "0.01"]
    assert report["mode"] == {"flip": True, "norm_score": True, "detector_score": True}
    assert report["embedded_images"] == 30
    assert (folder / "first try.pdf").read_bytes().startswith(b"%PDF")
    assert cv2.imread(str(folder / "first try.png")) is not None


@pytest.mark.numeric
@pytest.mark.parametrize("target", ["IJBC", "IJBB"])
def test_identification_end_to_end(ijb, model, tmp_path, capsys, target):
    assert eval_ijbc.main(arguments(model, ijb, tmp_path, "--target", target, "--protocol", "1N")) == 0
    folder = tmp_path / "out" / target
    assert not (folder / "insightface.npy").exists()
    found = json.loads((folder / "insightface.json").read_text())
    first, second = ("G1", "G2") if target == "IJBC" else ("S1", "S2")
    features = loop_templates(model, ijb)
    rank_1 = []
    for name, people in ((first, range(3)), (second, range(3, PEOPLE)), (f"{first}+{second}", range(PEOPLE))):
        result = found["identification"][name]
        similarity = {(q, p): features[10 * q + 1] @ features[10 * p] for q in range(PEOPLE) for p in people}
        hits = [max(people, key=lambda p, q=q: similarity[q, p]) == q for q in people]
        others = sorted((x for (q, p), x in similarity.items() if q != p), reverse=True)
        assert result["rank"]["1"] == sum(hits) / len(hits)
        assert result["rank"]["5"] == 1
        for fpir, k in (("0.01", 1), ("0.1", 1)):
            assert result["threshold_at_fpir"][fpir] == pytest.approx(others[k - 1], abs=1e-5)
            assert result["tpir_at_fpir"][fpir] == sum(similarity[q, q] > others[k - 1] for q in people) / len(people)
        assert (result["probes"], result["mated_probes"], result["gallery_templates"]) == (
            5,
            len(people),
            len(people),
        )
        rank_1.append(result["rank"]["1"])
    assert found["identification"]["mean"]["rank-1"] == (rank_1[0] + rank_1[1]) / 2
    text = (folder / "insightface.txt").read_text()
    assert text in capsys.readouterr().out
    assert f"mean of {first} and {second}" in text
    assert "Mode: " in text
    assert (folder / "insightface_1n.txt").read_text().startswith("(5, 64)\n(5, 64)\nsimilarity shape (5, 5)\n")


def test_both_protocols_and_the_report(ijb, model, tmp_path):
    assert eval_ijbc.main(arguments(model, ijb, tmp_path, "--protocol", "both", "--report")) == 0
    folder = tmp_path / "out" / "IJBC"
    found = json.loads((folder / "insightface.json").read_text())
    assert found["protocol"] == "both"
    assert {"tar_at_far", "identification"} <= found.keys()
    html = (folder / "insightface.html").read_text()
    HTMLParser().feed(html)
    for part in ("straight + mirrored, norm used", "Identification, 1:N", "rank-10", found["model_sha256"]):
        assert part in html
    assert (folder / "insightface_false_accepts.png").is_file()


@pytest.mark.numeric
@pytest.mark.parametrize(
    "off",
    [["flip"], ["norm_score"], ["detector_score"], ["flip", "norm_score", "detector_score"]],
    ids="-".join,
)
def test_modes(ijb, model, tmp_path, capsys, off):
    switches = [f"--no-{name.replace('_', '-')}" for name in off]
    assert eval_ijbc.main(arguments(model, ijb, tmp_path, *switches)) == 0
    folder = tmp_path / "out" / "IJBC"
    scores = np.load(folder / "insightface.npy")
    np.testing.assert_allclose(scores, loop_scores(model, ijb, **dict.fromkeys(off, False)), atol=1e-5)
    assert np.abs(scores - loop_scores(model, ijb)).max() > 1e-5
    mode = json.loads((folder / "insightface.json").read_text())["mode"]
    assert [name for name, on in mode.items() if not on] == off
    words = {"flip": "straight only", "norm_score": "normalised", "detector_score": "no detector score"}
    printed = capsys.readouterr().out
    for name, word in words.items():
        assert (word in printed) is (name in off)


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


def test_weights_that_overflow(ijb, model, tmp_path, capsys):
    weights = torch.load(model)
    weights["conv1.weight"].fill_(3e38)
    torch.save(weights, model)
    message = fails(capsys, arguments(model, ijb, tmp_path, "--network", "rtiny"))
    assert "30 of 30 embeddings hold nan" in message


def test_tree_is_checked_before_any_work(ijb, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(eval_ijbc, "embedded_tree", None)
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
    monkeypatch.setattr(eval_ijbc, "embedded_tree", None)
    path = ijb / "meta" / "ijbc_name_5pts_score.txt"
    lines = path.read_text().splitlines()
    lines[4] = "4.jpg " + "30 40 " * 5 + "0.9"
    path.write_text("\n".join(lines))
    message = fails(capsys, arguments(model, ijb, tmp_path, "--network", "rtiny"))
    assert "line 5: the landmarks of 4.jpg all lie in one point" in message


def test_result_folder_is_tried_before_any_work(ijb, model, tmp_path, capsys, monkeypatch):
    argv = arguments(model, ijb, tmp_path, "--network", "rtiny")
    (tmp_path / "out").write_text("a file where the folder should be")
    monkeypatch.setattr(eval_ijbc, "embedded_tree", None)
    message = fails(capsys, argv)
    assert f"cannot be written to {tmp_path / 'out' / 'IJBC'}" in message
    assert "choose another --result-dir" in message


def test_a_folder_that_takes_no_files(ijb, model, tmp_path, capsys, monkeypatch):
    def read_only(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(eval_ijbc, "embedded_tree", None)
    monkeypatch.setattr(eval_ijbc.tempfile, "TemporaryFile", read_only)
    message = fails(capsys, arguments(model, ijb, tmp_path, "--network", "rtiny"))
    assert "cannot be written to" in message
    assert "Permission denied" in message


def test_scores_outlive_a_failing_curve(ijb, model, tmp_path, capsys, monkeypatch):
    def failing(*_):
        raise ValueError("no curve today")

    monkeypatch.setattr(eval_ijbc, "verify_scores", failing)
    assert "no curve today" in fails(capsys, arguments(model, ijb, tmp_path, "--network", "rtiny"))
    folder = tmp_path / "out" / "IJBC"
    assert sorted(path.name for path in folder.iterdir()) == ["cache", "insightface.npy"]
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


@pytest.mark.numeric
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
    embedder = TorchEmbedder(backbone, "recorded", 16, "0" * 64, torch.device("cpu"))
    monkeypatch.setattr(eval_ijbc, "load_embedder", lambda *_: embedder)
    options = eval_ijbc.parse_arguments(arguments(tmp_path / "model.pt", root, tmp_path, "--batch-size", "64"))
    report = eval_ijbc.evaluate(options)
    assert (backbone.seen == 1).all()
    np.testing.assert_allclose(report.scores, recorded["pair_scores"], rtol=0, atol=1e-15)
    tar = report.verification.tar
    assert list(tar) == recorded["far"].tolist()
    np.testing.assert_allclose(list(tar.values()), recorded["tar"], rtol=0, atol=1e-12)


def test_onnx(ijb, model, tmp_path):
    """The same scores from an exported network, whose last batch is not full."""
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -r requirement-dev.txt")
    pytest.importorskip("onnxscript", reason="needs onnxscript: pip install -r requirement-dev.txt")
    from torch2onnx import main as export

    assert export([str(model), "--network", "rtiny", "--output", str(tmp_path / "net.onnx")]) == 0
    assert eval_ijbc.main(arguments(tmp_path / "net.onnx", ijb, tmp_path)) == 0
    folder = tmp_path / "out" / "IJBC"
    np.testing.assert_allclose(np.load(folder / "insightface.npy"), loop_scores(model, ijb), atol=1e-5)
    report = json.loads((folder / "insightface.json").read_text())
    assert report["network"] == "net.onnx"
    assert report["model_sha256"] == load_embedder(tmp_path / "net.onnx").sha256


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--device", "toaster"], "--device must be"),
        (["--device", "cuda:99"], "torch sees"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--job", "a/b"], "--job names files"),
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
