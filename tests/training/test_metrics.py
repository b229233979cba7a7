"""Metrics files, and Weights & Biases."""

import json
import sys
import types

import pytest

from training import metrics as ours
from utils.config import get_config


def read(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_resuming_cuts_what_came_after_the_checkpoint(tmp_path):
    cfg = get_config("demo")
    with ours.MetricsWriter(tmp_path, 0, cfg) as metrics:
        for step in range(1, 6):
            metrics.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    with ours.MetricsWriter(tmp_path, 3, cfg) as metrics:
        metrics.write(4, {"loss": 40.0})
    assert read(tmp_path) == [{"step": s, "loss": float(s)} for s in (1, 2, 3)] + [{"step": 4, "loss": 40.0}]


class FakeWandb(types.ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(name="wandb")
        self.logged, self.options, self.ended, self.saved = [], None, None, None

    def init(self, **options):
        self.options = options
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def save(self, path):
        self.saved = path

    def finish(self, exit_code):
        self.ended = exit_code


@pytest.fixture
def wandb(monkeypatch):
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_API_KEY", "from the environment")
    return module


def test_weights_and_biases_gets_what_the_config_says(tmp_path, wandb):
    cfg = get_config(
        "demo",
        ["using_wandb=True", "wandb_entity=us", "wandb_project=faces", "suffix_run_name=b", "wandb_resume=True"],
    )
    ours.check_wandb(cfg)
    with ours.MetricsWriter(tmp_path, 0, cfg) as metrics:
        metrics.write(1, {"loss": 2.0})
        metrics.artifact = tmp_path / "model.pt"
    assert wandb.logged == [(1, {"loss": 2.0})]
    assert wandb.saved == str(tmp_path / "model.pt")
    assert wandb.ended == 0
    wanted = {"entity": "us", "project": "faces", "name": "demo_b", "resume": "allow"}
    assert wanted.items() <= wandb.options.items()


@pytest.mark.parametrize(("all_ranks", "logs"), [(False, False), (True, True)])
def test_other_ranks_log_only_where_asked(tmp_path, wandb, all_ranks, logs):
    cfg = get_config("demo", ["using_wandb=True", f"wandb_log_all={all_ranks}"])
    with ours.MetricsWriter(tmp_path, 0, cfg, is_main=False) as metrics:
        metrics.write(1, {"loss": 2.0})
    assert bool(wandb.logged) == logs
    assert not (tmp_path / "metrics.jsonl").exists()


def test_weights_and_biases_needs_its_key(wandb, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(ValueError, match="environment variable WANDB_API_KEY"):
        ours.check_wandb(get_config("demo", ["using_wandb=True"]))
