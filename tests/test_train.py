"""train.py in one process: what it leaves, resuming, and every refusal."""

import json
import pickle
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

import train
from backbones import get_model
from paths import ROOT
from tiny_runs import TINY, metrics, run, weights
from training.loss_scale import LossScale
from utils.config import get_config
from utils.distributed import Ranks

LINE = re.compile(
    r"Speed \d+\.\d\d samples/sec   Loss \d+\.\d{4}   LearningRate \d\.\d{6}   Epoch: \d+   "
    r"Global Step: \d+   (Fp16 Grad Scale: \d+   )?Required: \d+:\d\d:\d\d "
)


def test_what_a_run_leaves(tmp_path, capsys):
    losses = run(tmp_path / "a")
    out = tmp_path / "a"
    assert {p.name for p in out.iterdir()} == {
        "model.pt",
        "checkpoints",
        "training.log",
        "metrics.jsonl",
        "tensorboard",
        "config.json",
        ".lock",
        ".launch",
    }
    assert list(losses) == list(range(1, 13))
    backbone = get_model("rtiny", 32)
    backbone.load_state_dict(weights(out), strict=True)
    assert json.loads((out / "config.json").read_text())["network"] == "rtiny"
    log = (out / "training.log").read_text()
    assert len(LINE.findall(log)) == 12
    assert "batch: 1 ranks x 8 x accumulation 1 = 8, lr 0.05, sgd" in log
    assert "loss: CosFace(scale=16, margin=0.2), softmax over all selected heads" in log
    assert "60 classes in 9 heads of 7" in log
    assert "MiB a rank at the peak" in log
    assert "rank 0: " in log
    assert LINE.search(capsys.readouterr().out)


def test_tensorboard_has_the_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    wanted = {"loss", "learning_rate", "images_per_s", "positive_cosine", "selected_heads", "selected_classes"}
    assert wanted | {"data_wait_share"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 13))


def test_it_learns(tmp_path):
    losses = run(tmp_path, "num_epoch=6", "num_classes=12", "num_image=24")
    steps = sorted(losses)
    assert np.mean([losses[s] for s in steps[-3:]]) < 0.7 * np.mean([losses[s] for s in steps[:3]])


def test_sigterm_saves(tmp_path):
    options = [TINY, f"output={tmp_path}", "num_epoch=1000"]
    command = [sys.executable, "train.py", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "Global Step: 3 " in line:
                process.terminate()
    assert process.returncode == 143
    log = (tmp_path / "training.log").read_text()
    step = int(re.search(r"stopped by SIGTERM after step (\d+)", log)[1])
    assert (tmp_path / "checkpoints" / f"step_{step}" / "training.pt").exists()


def test_non_finite_steps_are_skipped_and_counted(tmp_path):
    cfg = get_config(TINY, [f"output={tmp_path}", "max_nonfinite=3"])
    state, loader = train.prepare(cfg, Ranks(0, 1, 0, torch.device("cpu")))
    batches = train.epoch_batches(state, loader, train.Speedometer())
    state.train_step(batches)
    before = {k: v.clone() for k, v in state.backbone.state_dict().items() if "running" not in k and "num_b" not in k}
    centres = state.classifier.shard.weight.clone()
    poison = state.backbone.conv1.weight.register_hook(lambda grad: grad * torch.nan)
    state.train_step(batches)
    state.train_step(batches)
    assert state.skipped == 2
    after = state.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(state.classifier.shard.weight, centres)
    with pytest.raises(FloatingPointError, match=r"3 steps in a row .* the gradient of conv1.weight on rank 0, lr"):
        state.train_step(batches)
    poison.remove()
    state.optimizer.zero_grad()
    state.row_optimizer.zero_grad()
    state.train_step(batches)
    assert state.skipped_in_a_row == 0
    assert not torch.equal(state.classifier.shard.weight, centres)


def test_fp16_overflow_lowers_the_scale_and_goes_on(tmp_path):
    cfg = get_config(TINY, [f"output={tmp_path}", "fp16=True", "max_nonfinite=1"])
    state, loader = train.prepare(cfg, Ranks(0, 1, 0, torch.device("cpu")))
    state.scaler = LossScale(torch.device("cpu"), init_scale=2.0**40, growth_interval=100)
    batches = train.epoch_batches(state, loader, train.Speedometer())
    state.train_step(batches)
    assert state.skipped == 1
    assert state.scaler.get_scale() == 2.0**39


def test_verification_before_the_first_step_and_a_missing_set(tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = [cv2.imencode(".png", rng.integers(0, 255, (112, 112, 3), np.uint8))[1].tobytes() for _ in range(40)]
    with (tmp_path / "mine.bin").open("wb") as file:
        pickle.dump((images, [i % 2 == 0 for i in range(20)]), file)
    out = tmp_path / "run"
    run(out, f"val_targets={tmp_path / 'mine.bin'},nowhere")
    log = (out / "training.log").read_text()
    assert log.index("[mine][0]Accuracy-Flip") < log.index("Global Step: 1 ")
    assert "[mine][12]Accuracy-Highest" in log
    assert log.count("verification set nowhere is left out") == 1
    assert set(metrics(out, "mine/accuracy")) == {0, 12}


def test_init_backbone_takes_weights_and_tolerates_prefixes(tmp_path):
    run(tmp_path / "first")
    start = weights(tmp_path / "first")
    torch.save({f"module.{name}": value for name, value in start.items()}, tmp_path / "prefixed.pt")
    cfg = get_config(TINY, [f"output={tmp_path / 'second'}", f"init_backbone={tmp_path / 'prefixed.pt'}"])
    state, _ = train.prepare(cfg, Ranks(0, 1, 0, torch.device("cpu")))
    assert all(torch.equal(v, start[k]) for k, v in state.backbone.state_dict().items())
    assert "100.0 % of the tensors" in (tmp_path / "second" / "training.log").read_text()
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    refused(tmp_path / "third", "it is another network's", f"init_backbone={tmp_path / 'other.pt'}")


def test_image_folder(tmp_path):
    rng = np.random.default_rng(0)
    for person in ("ann", "bob", "eve"):
        (tmp_path / "faces" / person).mkdir(parents=True)
        for i in range(4):
            image = rng.integers(0, 255, (112, 112, 3), np.uint8)
            cv2.imwrite(str(tmp_path / "faces" / person / f"{i}.png"), image)
    losses = run(tmp_path / "run", f"rec={tmp_path / 'faces'}", "num_classes=auto", "num_image=None")
    assert len(losses) == 1
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["ann", "bob", "eve"]
    assert "12 images of 3 identities" in (tmp_path / "run" / "training.log").read_text()


def refused(output, message, *overrides, config=TINY):
    with pytest.raises(SystemExit) as exit_:
        train.main([config, f"output={output}", *overrides])
    assert exit_.value.code == 2
    assert re.search(message, refused.capsys.readouterr().err)


@pytest.fixture(autouse=True)
def _errors(capsys):
    refused.capsys = capsys


def test_refuses_an_output_of_another_run(tmp_path):
    run(tmp_path)
    refused(tmp_path, "holds another run .*resume = 'auto' .*overwrite = True")
    assert len(run(tmp_path, "overwrite=True")) == 12


def test_refuses_to_resume_from_nothing(tmp_path):
    refused(tmp_path, "holds no complete checkpoint", "resume=True")


def test_refuses_a_checkpoint_of_another_classifier(tmp_path):
    run(tmp_path)
    refused(tmp_path, "60 people with 96 images then, 61 people", "resume=True", "num_epoch=2", "num_classes=61")
    refused(tmp_path, "written with another optimizer", "resume=True", "num_epoch=2", "optimizer=adamw")
    refused(tmp_path, "has head_size = 7, this run has 60", "resume=True", "num_epoch=2", "head_size=60")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lr=fast"], "lr must be a number"),
        (["rec=/nowhere"], "/nowhere"),
        (["rec="], "rec is not set"),
        (["batch_size=100"], "96 images"),
        (["batch_size=8", "gradient_acc=13"], "less than one step's batch"),
        (["network=r17"], "r18"),
        (["device=cuda"], "torch sees no GPU"),
        (["using_wandb=True"], "wandb"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for the error of a machine without a GPU")
def test_refusals(tmp_path, overrides, message):
    refused(tmp_path, message, *overrides)


def test_unknown_config(tmp_path):
    refused(tmp_path, "did you mean configs/demo", config="configs/dem")


def test_labels_out_of_range_are_found_before_the_first_step(tmp_path, shared_data):
    refused(
        tmp_path,
        "labels run from 0 to 39.*allows 0 to 9",
        f"rec={shared_data / 'lfw_small_im2rec'}",
        "num_classes=10",
    )


def test_num_classes_auto_reads_the_records(tmp_path, shared_data):
    run(tmp_path, f"rec={shared_data / 'lfw_small_im2rec'}", "num_classes=auto", "num_image=None", "batch_size=64")
    assert "738 images of 40 identities" in (tmp_path / "training.log").read_text()


def test_verification_sets_beside_a_record_file(tmp_path, shared_data):
    folder = shared_data / "lfw_small_im2rec"
    for name in ("train.rec", "train.idx"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "mine.bin").write_bytes(b"not a pickle")
    cfg = get_config(TINY, [f"rec={tmp_path / 'train.rec'}"])
    assert train.data_folder(cfg) == tmp_path


def folder_of_two(root, size):
    (root / "ann").mkdir(parents=True)
    for name in ("1.png", "2.png"):
        cv2.imwrite(str(root / "ann" / name), np.zeros((size, size, 3), np.uint8))


def test_images_of_another_size_are_found_before_the_first_step(tmp_path):
    folder_of_two(tmp_path / "faces", 250)
    options = [f"rec={tmp_path / 'faces'}", "num_classes=auto", "batch_size=2"]
    refused(tmp_path / "run", r"1\.png.*\(250, 250\), expected \(112, 112\)", *options)


def test_identities_without_an_image_are_counted(tmp_path):
    folder_of_two(tmp_path / "faces", 112)
    run(tmp_path / "run", f"rec={tmp_path / 'faces'}", "num_classes=5", "batch_size=2")
    assert "4 of 5 identities have no image" in (tmp_path / "run" / "training.log").read_text()


def test_refuses_an_output_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "cannot write the output folder .* choose another with output=FOLDER")
    refused(tmp_path / "file" / "below", "cannot write the output folder")


def test_refuses_weights_that_are_not_torchs(tmp_path):
    (tmp_path / "weights.pt").write_text("not weights")
    refused(tmp_path / "run", "weights.pt", f"init_backbone={tmp_path / 'weights.pt'}")


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    run(tmp_path)
    refused(tmp_path, "trained with network 'rtiny', this run has 'mbf'", "resume=True", "num_epoch=2", "network=mbf")


def test_a_failed_start_changes_nothing_and_blocks_nothing(tmp_path):
    run(tmp_path / "old")
    before = sorted(p.name for p in (tmp_path / "old").rglob("*"))
    refused(tmp_path / "old", "no such folder", "overwrite=True", "rec=/nowhere")
    assert sorted(p.name for p in (tmp_path / "old").rglob("*")) == before
    refused(tmp_path / "new", "no such folder", "rec=/nowhere")
    assert len(run(tmp_path / "new")) == 12
