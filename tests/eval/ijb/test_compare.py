import json

import numpy as np
import pytest

from eval import bootstrap
from eval.ijb.compare import main
from eval.ijb.lists import read_lists
from ijb_tree import make_tree


@pytest.fixture(scope="module")
def ijb(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("ijb") / "IJBC")


def test_two_results(ijb, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bootstrap, "LEAST_PAIRS", 1)
    labels = read_lists(ijb, "IJBC").pair_label
    rng = np.random.default_rng(0)
    for name, noise in (("good", 0.1), ("bad", 2.0)):
        np.save(tmp_path / f"{name}.npy", labels + rng.normal(0, noise, len(labels)))
    out, png = tmp_path / "o.json", tmp_path / "both.png"
    given = [str(tmp_path / "good.npy"), str(tmp_path / "bad.npy"), "--image-path", str(ijb)]
    assert main([*given, "--out", str(out), "--png", str(png)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[1].split("|")[1:4] == [" FAR ", "   good ", "   bad "]
    assert "5 people (as genuine pairs join their templates) drawn again" in printed
    told = json.loads(out.read_text())
    assert told["first_tar"]["0.1"] == 1
    low, high = told["difference_interval"]["0.1"]
    assert low <= told["second_tar"]["0.1"] - 1 <= high
    assert low < 0
    assert png.stat().st_size > 10_000


def test_scores_of_another_set_are_refused(ijb, tmp_path, capsys):
    for name in "ac":
        np.save(tmp_path / f"{name}.npy", np.zeros(3))
    assert main([str(tmp_path / "a.npy"), str(tmp_path / "c.npy"), "--image-path", str(ijb)]) == 2
    assert "holds scores of shape (3,), but IJBC" in capsys.readouterr().err
    assert main([str(tmp_path / "a.npy"), str(tmp_path / "a.npy"), "--image-path", str(ijb)]) == 2
    assert "a.npy is given twice: expected the scores of two models" in capsys.readouterr().err
    assert main([str(tmp_path / "b.npy"), str(tmp_path / "a.npy"), "--image-path", str(ijb)]) == 2
    assert "expected RESULT_DIR/IJBC/JOB.npy" in capsys.readouterr().err
