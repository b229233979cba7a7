"""Metrics files."""

import json

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
