"""Short runs of the tiny recipe, and what they leave."""

import json
from pathlib import Path
from unittest.mock import patch

import torch

import train
from paths import ROOT
from training.run import TrainingRun
from utils.config import get_config
from utils.distributed import Ranks

TINY = str(ROOT / "tests" / "tiny.py")


def run(output, *overrides):
    """Train in this process; the logged losses by step."""
    train.main([TINY, f"output={output}", *overrides])
    return metrics(output)


def prepared(output, *overrides, ranks=None):
    """A run of two epochs before its next step, and the rest of the epoch's batches."""
    cfg = get_config(TINY, [f"output={output}", "num_epoch=2", *overrides])
    state, data = train.prepare(cfg, ranks or Ranks(0, 1, 0, torch.device("cpu")))
    return state, train.epoch_batches(state, data, train.Speedometer())


def metrics(output, name="loss"):
    lines = [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def weights(output):
    return torch.load(Path(output) / "model.pt", weights_only=True)


def run_saving_in_time(output, *overrides):
    """Like ``run``, but no checkpoint is put off because the one before is still being written."""
    save_if_due = TrainingRun.save_if_due

    def save_in_time(self):
        self.saver.finish()
        save_if_due(self)

    with patch.object(TrainingRun, "save_if_due", save_in_time):
        return run(output, *overrides)


def run_with_checkpoints(output):
    """An epoch of twelve steps with checkpoints after 4, 8 and 12."""
    run_saving_in_time(output, "num_epoch=1", "checkpoint_steps=4", "keep_checkpoints=9")
    return output
