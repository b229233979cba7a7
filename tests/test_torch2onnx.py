import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import inference
import torch2onnx
from backbones import MODEL_NAMES
from embedder.load import file_sha256, load_embedder
from model_files import load_model, save_random_model

onnx = pytest.importorskip("onnx", reason="exporting needs onnx, onnxruntime, onnxscript")
pytest.importorskip("onnxruntime", reason="exporting needs onnx, onnxruntime, onnxscript")
pytest.importorskip("onnxscript", reason="exporting needs onnx, onnxruntime, onnxscript")

QUICK = (
    "r18",
    "mbf",
    "rtiny",
    "vtiny",
)  # one of each kind; the deep ones repeat the same blocks, r100 and the others those of r50
REPEATED = ("r34", "r100", "r200", "r2060", *(n for n in MODEL_NAMES if n.startswith("vit_") and n != "vit_t"))


@pytest.fixture
def exported(exported_network):
    return exported_network("rtiny")[:2]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.numeric if n in QUICK else pytest.mark.slow)
        for n in MODEL_NAMES
        if n not in REPEATED
    ],
)
def test_every_network_at_any_batch(exported_network, name):
    model, path, difference = exported_network(name)
    assert path == model.parent / "model.onnx"
    assert 0 <= difference < 1e-4
    assert torch2onnx.compare(path, load_model(model, name), (3,)) < 1e-4
    assert sorted(p.name for p in model.parent.iterdir()) == ["model.onnx", "model.pt"]


def test_form_and_metadata(exported):
    model, path = exported
    graph = onnx.load(str(path)).graph
    (entry,), (out,) = graph.input, graph.output
    assert [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim][1:] == [3, 112, 112]
    assert entry.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert (entry.name, out.name) == ("input", "embedding")
    assert [d.dim_value for d in out.type.tensor_type.shape.dim][1:] == [64]
    found = {prop.key: prop.value for prop in onnx.load(str(path)).metadata_props}
    assert found["weights_sha256"] == file_sha256(model) == load_embedder(path).weights_sha256
    wanted = {
        "network": "rtiny",
        "embedding_size": "64",
        "input_size": "112x112",
        "input_mean": "127.5",
        "input_std": "127.5",
        "color_order": "RGB",
        "normalized": "false",
    }
    assert wanted.items() <= found.items()


def test_no_first_node_that_insightface_would_mistake(exported):
    names = [node.name for node in onnx.load(str(exported[1])).graph.node]
    assert not any(name.startswith(("Sub", "_minus", "Mul", "_mul")) for name in names)


def test_a_name_that_would_be_mistaken_is_changed(exported, tmp_path):
    graph = onnx.load(str(exported[1]))
    graph.graph.node[0].name, graph.graph.node[1].name = "Sub_0", "_mulscalar"
    onnx.save(graph, str(tmp_path / "odd.onnx"))
    torch2onnx.describe(tmp_path / "odd.onnx", {"key": "value"})
    after = onnx.load(str(tmp_path / "odd.onnx"))
    assert [node.name for node in after.graph.node[:2]] == ["net_Sub_0", "net__mulscalar"]
    assert after.metadata_props[0].key == "key"


@pytest.mark.numeric
def test_half_precision_of_training_does_not_reach_the_file(exported, tmp_path):
    model, path = exported
    (tmp_path / "model.pt").write_bytes(model.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"network": "rtiny", "embedding_size": 64, "bf16": True}))
    assert torch2onnx.main([str(tmp_path)]) == 0
    x = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), np.uint8)
    np.testing.assert_allclose(
        load_embedder(tmp_path / "model.onnx").embed(x), load_embedder(path).embed(x), atol=1e-6
    )


@pytest.mark.numeric
def test_the_embedder_and_inference_take_it(exported, tmp_path, capsys):
    model, path = exported
    x = np.random.default_rng(1).integers(0, 256, (3, 112, 112, 3), np.uint8)
    ours = load_embedder(path)
    assert ours.embedding_size == 64
    wanted = load_embedder(model, "rtiny").embed(x)
    np.testing.assert_allclose(ours.embed(x), wanted, atol=1e-4 * np.abs(wanted).max())
    import cv2

    cv2.imwrite(str(tmp_path / "face.png"), x[0, ..., ::-1])
    assert inference.main([str(tmp_path / "face.png"), "--model", str(path)]) == 0
    captured = capsys.readouterr()
    np.testing.assert_allclose(json.loads(captured.out), wanted[0], atol=1e-4 * np.abs(wanted).max())
    assert "(x / 255 - 0.5) / 0.5" in captured.err


def test_a_file_that_differs_is_refused(tmp_path, capsys, monkeypatch):
    model = save_random_model(tmp_path, "rtiny")
    other = load_model(save_random_model(tmp_path / "other", "rtiny", seed=1), "rtiny")
    export = torch2onnx.export
    monkeypatch.setattr(torch2onnx, "export", lambda backbone, path, opset: export(other, path, opset))
    (tmp_path / "model.onnx").write_text("an older export")
    assert torch2onnx.main([str(model)]) == 2
    error = capsys.readouterr().err
    assert "differs from torch's by" in error
    assert "was not written" in error
    assert (tmp_path / "model.onnx").read_text() == "an older export"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.pt", "other"]


def test_weights_with_nan_are_refused(tmp_path, capsys):
    model = save_random_model(tmp_path, "rtiny")
    state = torch.load(model)
    state["fc.weight"][0, 0] = float("nan")
    torch.save(state, model)
    assert torch2onnx.main([str(model)]) == 2
    assert "1 of 133 tensors hold values that are not finite" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_command_line(exported, tmp_path, capsys):
    out = tmp_path / "deep" / "face.onnx"
    assert torch2onnx.main([str(exported[0]), "--network", "rtiny", "--output", str(out), "--opset", "17"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: differs from torch by at most ")
    assert "at batch 1 and 5" in printed
    assert {entry.version for entry in onnx.load(str(out)).opset_import if entry.domain == ""} == {17}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--network", "r18"], "does not hold the weights of network 'r18'"),
        (["--output", "face.pt"], "--output must end in .onnx"),
        (["--opset", "3"], "opset"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(exported, capsys, more, message):
    assert torch2onnx.main([str(exported[0]), *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("torch2onnx.py: error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_place_that_cannot_be_written_is_not_the_exporters_fault(exported, tmp_path, capsys):
    (tmp_path / "face.onnx").mkdir()
    assert torch2onnx.main([str(exported[0]), "--output", str(tmp_path / "face.onnx")]) == 2
    error = capsys.readouterr().err
    assert "face.onnx" in error
    assert "could not export" not in error


def test_missing_weights(tmp_path, capsys):
    assert torch2onnx.main([str(tmp_path / "none.pt")]) == 2
    assert "no file" in capsys.readouterr().err


def test_missing_packages_are_named(exported, capsys, monkeypatch):
    find = torch2onnx.importlib.util.find_spec
    monkeypatch.setattr(
        torch2onnx.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    assert torch2onnx.main([str(exported[0])]) == 2
    assert "exporting needs onnxscript: pip install onnxscript" in capsys.readouterr().err


def test_importing_it_needs_no_onnx():
    code = Path(torch2onnx.__file__).read_text()
    top = [line for line in code.splitlines() if line.startswith(("import ", "from "))]
    assert not any(line.split()[1].startswith("onnx") for line in top)
    assert "torch2onnx" in sys.modules


def test_the_switch_of_other_projects_is_taken(tmp_path, capsys):
    assert torch2onnx.main([str(tmp_path / "none.pt"), "--simplify", "True"]) == 2
    assert "none.pt" in capsys.readouterr().err
