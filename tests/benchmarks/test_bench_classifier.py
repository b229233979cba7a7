"""The classifier's benchmark: its records, and that what it compares against computes the same loss."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import bench_classifier, classifier_case
from benchmarks.baselines import DenseMHS, DensePartialFC, FullSoftmax, NormalisedMHS
from heads.optim import RowSGD
from losses import ArcFace
from partial_fc_mhs import PartialFCMHS

C, D, L = 29, 8, 4  # the last head has one class
KEYS = {
    "method",
    "storage",
    "classes",
    "head_size",
    "batch",
    "dim",
    "ranks",
    "amp",
    "identities",
    "even_labels",
    "row_momentum",
    "step_ms",
    "step_ms_p10",
    "step_ms_p90",
    "first_visit_ms",
    "floor_ms",
    "peak_mib",
    "selected_classes",
    "steps",
}


def batch():
    g = torch.Generator().manual_seed(5)
    x = torch.randn(6, D, generator=g, dtype=torch.float64)
    labels = torch.tensor([0, 3, 9, 28, 9, 17])
    weight = torch.randn(C, D, generator=g, dtype=torch.float64)
    return x, labels, weight


def with_weight(dense, weight):
    with torch.no_grad():
        dense.weight.copy_(weight)
    return dense


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("make_dense", "head_size", "negative_rate"),
    [
        (lambda m: DenseMHS(m, D, C, head_size=L, dtype=torch.float64), L, 0.0),
        (lambda m: NormalisedMHS(m, D, C, head_size=L, dtype=torch.float64), L, 0.0),
        (lambda m: DensePartialFC(m, D, C, sample_rate=1.0, dtype=torch.float64), 1, 1.0),
        (lambda m: FullSoftmax(m, D, C, dtype=torch.float64), 1, 1.0),
    ],
    ids=["mhs_dense", "mhs_normalised", "partial_fc", "full_softmax"],
)
def test_a_first_step_equals_ours(make_dense, head_size, negative_rate):
    """Loss, gradient of the embeddings, and the selected rows after one update."""
    x, labels, weight = batch()
    margin = ArcFace(16.0, 0.3)
    ours = PartialFCMHS(margin, D, C, head_size=head_size, negative_rate=negative_rate, dtype=torch.float64)
    ours.shard.weight.copy_(weight)
    ours.shard.visits.fill_(1)
    dense = with_weight(make_dense(margin), weight)
    steps = (
        (ours, RowSGD(ours.shard, 0.1, 0.9, 5e-4)),
        (dense, torch.optim.SGD(dense.parameters(), 0.1, 0.9, weight_decay=5e-4)),
    )
    losses, grads = [], []
    for classifier, optimizer in steps:
        x_BD = x.clone().requires_grad_()
        loss = classifier(x_BD, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        grads.append(x_BD.grad)
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=1e-12)
    moved = (ours.shard.weight != weight).any(1)
    assert int(moved.sum()) == dense.selected_rows == int(ours.stats.selected_classes)
    torch.testing.assert_close(dense.weight.detach()[moved], ours.shard.weight[moved], rtol=0, atol=1e-12)


def test_partial_fc_takes_the_labels_and_a_share_of_the_others():
    x, labels, weight = batch()
    margin = ArcFace(16.0, 0.3)
    dense = with_weight(DensePartialFC(margin, D, C, sample_rate=0.5, dtype=torch.float64), weight)
    torch.manual_seed(1)
    rows = dense.choose(labels)
    assert len(rows) == C // 2
    assert torch.isin(labels, rows).all()
    assert torch.equal(rows, rows.unique())
    torch.manual_seed(1)
    loss = dense(x, labels)
    logits = margin(F.linear(F.normalize(x), F.normalize(weight[rows])), torch.searchsorted(rows, labels))
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.searchsorted(rows, labels)), rtol=0, atol=1e-12)


def test_identities_are_visited_once_and_opened_first():
    case = classifier_case.Case("mhs", "device", 5000, 12, 8, 4, 2, "none", 3, 400, False, 1, 1.0)
    parts = [classifier_case.Labels(case, rank).first_visits() for rank in range(2)]
    opening = [torch.cat(pair) for pair in zip(parts[0][0], parts[1][0], strict=True)]
    rest = [torch.cat(pair) for pair in zip(parts[0][1], parts[1][1], strict=True)]
    heads = torch.cat(opening) // 12
    assert len(opening) > 5
    assert len(heads.unique()) == len(heads)
    assert len(torch.cat(opening + rest).unique()) == 400
    assert all(len(labels) == 16 for labels in opening + rest)


def test_writes_its_records(tmp_path, capsys):
    out, figure = tmp_path / "raw" / "classifier.jsonl", tmp_path / "steps.png"
    arguments = "--quick --methods mhs mhs_dense --storage device file --classes 600 6e14 --dim 16 --batch 8"
    bench_classifier.main(
        f"{arguments} --steps 3 --identities 64 --folder {tmp_path} --out {out} --figure {figure}".split()
    )
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["method"], r["storage"]) for r in records] == [
        ("mhs", "device"),
        ("mhs", "file"),
        ("mhs_dense", "device"),
    ]
    assert [r["row_momentum"] for r in records] == [0.0, 0.0, 0.9]
    for record in records:
        assert record.keys() >= KEYS
        assert record["classes"] == 600
        assert record["steps"] == 3
        assert 12 <= record["selected_classes"] <= 96
        assert record["peak_mib"] > record["baseline_mib"] > 0
    assert [r["first_visit_ms"] is not None for r in records] == [True, True, False]
    printed = capsys.readouterr().out
    assert "mhs_dense, device, 600,000,000,000,000 classes, L 12, B 8: skipped: needs " in printed
    assert "mhs_dense / step" in printed
    assert figure.stat().st_size > 10_000
    assert not list(tmp_path.glob("bench_heads_*"))


def test_a_cache_stands_beside_the_same_heads_without_one(tmp_path, capsys):
    line = f"--methods mhs mhs_dense --storage device host file --cache-gib 0 1e-4 --classes 600 --folder {tmp_path}"
    cases = bench_classifier.cases_of(bench_classifier.parse(line.split()))
    assert [(c.method, c.storage, c.cache_gib) for c in cases] == [
        ("mhs", "device", 0.0),
        ("mhs", "host", 0.0),
        ("mhs", "host", 1e-4),
        ("mhs", "file", 0.0),
        ("mhs", "file", 1e-4),
        ("mhs_dense", "device", 0.0),
    ]
    assert "mhs, file + 0.0001 GiB, 600 classes" in str(cases[4])
    assert [c.memory_bytes() / 2**20 for c in cases[1:5]] == pytest.approx([1.17, 1.17 + 0.1, 0, 0.1], abs=0.01)
    small = replace(cases[2], steps=3, batch=8, identities=64, dim=16, cache_gib=100 * 12 * 16 * 4 / 2**30)
    found = classifier_case.measure(small)
    assert (found["cache_gib"], found["hit_rate"]) == (small.cache_gib, 1.0)
    none = classifier_case.measure(replace(small, cache_gib=0.0))
    merged = bench_classifier.merge([found, found | {"step_ms": 3.0}])
    device = {**none, "storage": "device", "step_ms_rounds": [found["step_ms"] / 2, 2.0]}
    with_ratio = bench_classifier.table([device, none, merged]).get_string(fields=["step / device", "cache hits"])
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in with_ratio.splitlines() if "|" in row]
    assert cells == [["step / device", "cache hits"], ["", ""], ["", ""], ["1.75", "100%"]]


def record(method, classes, head_size, batch, step_ms, peak_mib):
    return {
        "method": method,
        "storage": "device",
        "classes": classes,
        "head_size": head_size,
        "batch": batch,
        "dim": 512,
        "ranks": 1,
        "amp": "none",
        "even_labels": False,
        "step_ms": step_ms,
        "step_ms_p10": step_ms,
        "step_ms_p90": step_ms,
        "first_visit_ms": None,
        "floor_ms": 4.0,
        "disk_wait_share": None,
        "peak_mib": peak_mib,
        "baseline_mib": 500.0,
        "selected_classes": 7,
    }


def test_a_grid_asks_for_each_head_size_and_batch_once(tmp_path):
    line = f"--head-size 12 100 --batch 8 16 --classes 1e4 --dim 8 --folder {tmp_path}"
    cases = bench_classifier.cases_of(bench_classifier.parse(line.split()))
    asked = [(case.method, case.head_size, case.batch) for case in cases]
    assert len(asked) == len(set(asked)) == 3 * 4 + 2 * 2
    assert {(L, B) for method, L, B in asked if method == "full_softmax"} == {(12, 8), (12, 16)}


def test_shows_records_of_several_settings_apart_and_in_a_grid(tmp_path, capsys):
    raw = tmp_path / "grid.jsonl"
    records = [
        record("mhs", 10_000, 12, 8, 8.0, 700.0) | {"row_momentum": 0.0},
        record("mhs", 100_000, 12, 8, 10.0, 800.0) | {"row_momentum": 0.0},
        record("mhs", 100_000, 100, 8, 60.0, 900.0),
        record("mhs_normalised", 100_000, 12, 8, 250.0, 2500.0),
        record("full_softmax", 100_000, 12, 8, 500.0, 3500.0),
    ]
    raw.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert bench_classifier.main(["--read", str(raw)]) == records
    printed = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    grid = {(row[0], row[2]): row[4:] for row in printed if len(row) == 6}
    assert grid["method", "L"] == ["10,000", "100,000"]
    assert grid["mhs", "12"] == ["8.0 / 200", "10.0 / 300"]
    assert grid["mhs, momentum", "100"] == ["", "60.0 / 400"]  # an older record
    assert grid["full_softmax", "-"] == ["", "500.0 / 3,000"]
    (flat,) = (row for row in printed if row[:3] == ["mhs", "device", "100,000"] and row[3] == "10.0")
    assert flat[5:9] == ["1.25", "", "25.0", "2.50"]  # to the smallest, to both dense forms, to the floor
