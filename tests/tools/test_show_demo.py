import json

from tools import show_demo


def test_accuracy_and_files(tmp_path, capsys):
    lines = [{"step": 0, "demo/accuracy": 0.5}, {"loss": 3.0}, {"step": 9, "demo/accuracy": 0.9475}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    show_demo.main([str(tmp_path), str(tmp_path / "data")])
    printed = capsys.readouterr().out
    assert "50.0 % right with the untrained network, 94.8 % with the trained one" in printed
    for path in ("ijb_test_results/IJBC/insightface.html", "data/faces.png", "model.pt"):
        assert str(tmp_path / path) in printed
