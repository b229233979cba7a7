import json
import shutil

import numpy as np
import pytest
import torch

import heads.saved
import saved_heads
import train
from losses import get_margin
from partial_fc_mhs import PartialFCMHS
from paths import ROOT
from ranks import run_ranks
from tools import export_centers
from utils.config import get_config
from utils.distributed import Ranks

C, L, D, SEED = 23, 4, 8, 5  # six heads, the last of three classes
UPDATED = {0: 1, 2: 3, 5: 2}  # head -> updates


def trained(classes):
    """Centres as if training had left them, a function of the class."""
    return classes[:, None] + torch.arange(D) / 100


def make_classifier(dtype=torch.float32, num_classes=C):
    margin = get_margin("arcface", 64.0)
    return PartialFCMHS(margin, D, num_classes, head_size=L, seed=SEED, dtype=dtype)


def write_checkpoint(rank, world_size, folder, updated, dtype=torch.float32):
    classifier = make_classifier(dtype)
    for number, updates in updated.items():
        if classifier.shard.layout.head_start <= number < classifier.shard.layout.head_end:
            classes = torch.arange(number * L, min((number + 1) * L, C))
            values = {name: trained(classes).to(dtype) for name in classifier.shard.storage.names}
            for _ in range(updates):
                classifier.shard.storage.store(torch.tensor([number]), values)
    saved_heads.write_checkpoint(folder, classifier.shard)


def expected(updated=UPDATED, dtype=torch.float32):
    centres = make_classifier(dtype).shard.initial_centres(torch.arange(C))
    updates = torch.zeros(C, dtype=torch.int32)
    for number, count in updated.items():
        classes = torch.arange(number * L, min((number + 1) * L, C))
        centres[classes] = trained(classes).to(dtype)
        updates[classes] = count
    return centres.numpy(), updates.numpy()


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "step_12"
    write_checkpoint(0, 1, folder, UPDATED)
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_number_of_ranks_gives_the_same_centres(tmp_path, world_size, checkpoint):
    folder = tmp_path / "checkpoints" / "step_1"
    run_ranks(write_checkpoint, world_size, folder, UPDATED)
    assert export_centers.main([str(checkpoint), str(tmp_path / "one.npy")]) == 0
    assert export_centers.main([str(folder), str(tmp_path / "many.npy")]) == 0
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "many.npy").read_bytes()


@pytest.mark.parametrize("blocks", ["one", "a head each", "uneven"])
def test_updated_and_untouched_centres(checkpoint, tmp_path, capsys, monkeypatch, blocks):
    head_bytes = L * D * 4
    monkeypatch.setattr(
        heads.saved, "MERGED_BLOCK_BYTES", {"one": 1 << 20, "a head each": 1, "uneven": 4 * head_bytes}[blocks]
    )
    out, updates = tmp_path / "deep" / "centres.npy", tmp_path / "updates.npy"
    assert export_centers.main([str(checkpoint), str(out), "--updates", str(updates)]) == 0
    wanted, wanted_updates = expected()
    found = np.load(out)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(np.load(updates), wanted_updates)
    assert "23 x 8 centres" in capsys.readouterr().out
    assert [p.name for p in out.parent.iterdir()] == ["centres.npy"]


def test_counts_are_printed(checkpoint, tmp_path, capsys):
    export_centers.main([str(checkpoint), str(tmp_path / "c.npy")])
    assert "11 updated, 12 as they started" in capsys.readouterr().out


def test_a_torch_file(checkpoint, tmp_path):
    out = tmp_path / "centres.pt"
    assert export_centers.main([str(checkpoint), str(out)]) == 0
    weight = torch.load(out, weights_only=True)["weight"]
    np.testing.assert_array_equal(weight.numpy(), expected()[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["centres.pt", "run"]


@pytest.mark.parametrize("updated", [{}, {0: 1}, {5: 1}])
def test_few_updates(tmp_path, updated):
    write_checkpoint(0, 1, tmp_path / "checkpoints" / "step_1", updated)
    assert export_centers.main([str(tmp_path), str(tmp_path / "c.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), expected(updated)[0])


def test_double_precision_stays(tmp_path):
    write_checkpoint(0, 1, tmp_path / "checkpoints" / "step_1", UPDATED, torch.float64)
    export_centers.write_centres(tmp_path / "checkpoints" / "step_1", tmp_path / "c.npy")
    found = np.load(tmp_path / "c.npy")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, expected(dtype=torch.float64)[0])


def test_the_newest_checkpoint_of_a_run_and_its_names(checkpoint, tmp_path, capsys):
    run = checkpoint.parent.parent
    shutil.copytree(checkpoint, checkpoint.with_name("step_9"))
    (run / "classes.json").write_text(json.dumps([f"person {i}" for i in range(C)]))
    for source in (run, run / "checkpoints", checkpoint):
        assert export_centers.main([str(source), str(tmp_path / "c.npy")]) == 0
        out = capsys.readouterr().out
        assert "step_12" in out
        assert "step_9" not in out
        assert f"row i is the i-th name in {(run / 'classes.json').resolve()}" in out
    (run / "classes.json").write_text("[]")
    export_centers.main([str(run), str(tmp_path / "c.npy")])
    assert "classes.json" not in capsys.readouterr().out


def test_of_a_training(tmp_path):
    """Every centre that the run holds in the end, on two kinds of heads: updated and never updated."""
    cfg = get_config(str(ROOT / "tests" / "tiny.py"), [f"output={tmp_path}", "num_classes=500", "head_size=3"])
    run, loader = train.prepare(cfg, Ranks(0, 1, 0, torch.device("cpu")))
    train.train(run, loader)
    assert export_centers.main([str(tmp_path), str(tmp_path / "c.npy"), "--updates", str(tmp_path / "u.npy")]) == 0
    updates = np.load(tmp_path / "u.npy")
    assert 0 < np.count_nonzero(updates) < 500
    classifier = run.classifier
    visits = np.repeat(classifier.shard.visits.numpy(), 3)[:500]
    np.testing.assert_array_equal(updates, visits)
    found = torch.from_numpy(np.load(tmp_path / "c.npy"))
    touched = torch.from_numpy(visits > 0)
    assert torch.equal(found[touched], classifier.shard.weight[touched])
    assert torch.equal(found[~touched], classifier.shard.initial_centres(torch.arange(500))[~touched])


def fails(capsys, *argv):
    assert export_centers.main([str(value) for value in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("export_centers: error: ")
    assert error.count("\n") == 1
    return error


def test_what_the_user_got_wrong_is_one_line(checkpoint, tmp_path, capsys):
    out = tmp_path / "c.npy"
    assert "holds no checkpoint" in fails(capsys, tmp_path / "nowhere", out)
    assert "expected OUT as .npy or .pt" in fails(capsys, checkpoint, tmp_path / "c.txt")
    assert "are the same file" in fails(capsys, checkpoint, out, "--updates", out)
    part = checkpoint / "heads" / "rank_0_of_1"
    part.rename(checkpoint / "heads" / "away")
    assert "heads.npy is missing" in fails(capsys, checkpoint, out)
    (checkpoint / "heads" / "away").rename(part)
    weight = part / "layer_0" / "weight.npy"
    weight.write_bytes(weight.read_bytes()[:-1])
    assert "weight.npy is damaged" in fails(capsys, checkpoint, out)
    (checkpoint / "training.pt").write_bytes(b"cut")
    assert "training.pt is damaged: 3 bytes" in fails(capsys, checkpoint, out)
    assert not out.exists()
