"""The comparison of the classifier's types: paired seeds, one record a run."""

import json

from benchmarks import classifier_precision


def test_a_quick_run_pairs_the_types(tmp_path, capsys):
    assert classifier_precision.main(["--quick", "--seeds", "2", "--out", str(tmp_path / "a.jsonl")]) == 0
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(r["seed"], r["classifier"]) for r in records] == [
        (seed, name) for seed in (0, 1) for name in ("float32", "bfloat16")
    ]
    losses = [r["loss"] for r in records]
    assert len(set(losses)) == 4, "types and seeds differ"
    assert abs(losses[0] - losses[1]) < 0.1, "a seed's runs start and go alike"
    assert "rank1" in capsys.readouterr().out


def test_gradients_are_most_exact_in_float32_and_least_in_bfloat16(capsys):
    assert classifier_precision.main(["--gradients"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "e-" in line]
    assert len(rows) == 3
    for _, exact, half, short in ([float(cell) for cell in row] for row in rows):
        assert exact < half < short
