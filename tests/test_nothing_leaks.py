"""What a run tells: no secret in its files, its output or an error; no port, no connection; no markup or escapes."""

import json
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from eval.pairs.__main__ import main as eval_pairs
from eval.report.write import PairScores, Section, write_report
from eval.roc import roc
from face_files import face
from inference import main as inference
from made_faces import encode
from model_files import save_random_model
from tiny_runs import TINY, run
from tools.check_data import main as check_data
from tools.make_bin import EncodedPairs, write_bin
from tools.pack_rec import main as pack_rec
from training.report import StepReport
from utils.config import get_config

SECRETS = {
    "WANDB_API_KEY": "first-secret-of-the-environment",
    "AWS_SECRET_ACCESS_KEY": "second-secret-of-the-environment",
    "HF_TOKEN": "third-secret-of-the-environment",
}
ESCAPE = "\x1b]0;owned\x07\x1b[31m"


@pytest.fixture
def secrets(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def listening():
    """Ports that this process listens on, by their sockets."""
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        if (table := Path("/proc/self/net", name)).exists()
        for line in table.read_text().splitlines()[1:]
    ]
    own = {os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}  # noqa: PTH115
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads Linux's table of ports")
def test_the_table_of_ports_shows_what_listens():
    before = listening()
    with socket.create_server(("127.0.0.1", 0)):
        assert len(listening() - before) == 1


def test_a_run_of_one_process_opens_no_port_and_tells_no_secret(tmp_path, secrets, monkeypatch, capfd):
    before = listening()
    connected, ports = [], []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: connected.append(address))
    write = StepReport.write
    monkeypatch.setattr(StepReport, "write", lambda self: (ports.append(listening() - before), write(self)))
    run(tmp_path / "out")
    assert ports == [set()] * 12
    assert connected == []
    assert "wandb" not in sys.modules
    printed = capfd.readouterr()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"config.json", "training.log", "metrics.jsonl", "training.pt"} <= {path.name for path in files}
    told = [path.read_bytes() for path in files] + [printed.out.encode(), printed.err.encode()]
    for secret in SECRETS.values():
        assert not any(secret.encode() in content for content in told)


def test_an_error_tells_no_secret(tmp_path, secrets, capsys):
    for override in ("rec=" + str(tmp_path / "none"), f"wandb_key={SECRETS['WANDB_API_KEY']}", "lr=x"):
        with pytest.raises(SystemExit):
            train.main([TINY, f"output={tmp_path / 'out'}", override])
    printed = capsys.readouterr()
    assert printed.err.count("train.py: ") == 3
    for secret in SECRETS.values():
        assert secret not in printed.out + printed.err


def test_wandb_gets_no_secret(tmp_path, secrets):
    settings = json.dumps(get_config("demo", ["using_wandb=True"]).as_dict(), default=str)
    assert not any(secret in settings for secret in SECRETS.values())


def printed_plainly(capsys):
    """What was printed, all of it harmless to a terminal."""
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert not [c for c in text if not c.isprintable() and c not in "\n\r\t"]  # \r: progress bars
    assert "\\x1b]0;owned\\x07" in printed.out + printed.err
    return printed


@pytest.fixture
def evil_folder(tmp_path):
    """Identities whose names are escape sequences, one without images, one with a damaged image."""
    for name, content in (("a" + ESCAPE, face(3)), ("b" + ESCAPE, b"no image"), ("c" + ESCAPE, None)):
        (tmp_path / "faces" / name).mkdir(parents=True)
        if content is not None:
            (tmp_path / "faces" / name / f"{ESCAPE}.png").write_bytes(content)
    return tmp_path / "faces"


def test_names_of_folders_reach_the_terminal_plainly(evil_folder, tmp_path, capsys):
    assert check_data([str(evil_folder), "--workers", "1"]) == 1
    printed_plainly(capsys)
    assert pack_rec([str(evil_folder), str(tmp_path / "out"), "--workers", "1"]) == 0
    printed_plainly(capsys)
    with pytest.raises(SystemExit):
        train.main([TINY, f"output={tmp_path / 'run'}", f"rec={evil_folder}", "num_classes=auto"])
    assert printed_plainly(capsys).err.count("\n") == 1


@pytest.mark.parametrize(
    "settings",
    [{"network": ESCAPE}, {"network": [ESCAPE]}, {"embedding_size": ESCAPE}, {"network": "rtiny" + ESCAPE}],
)
def test_settings_of_others_reach_the_terminal_plainly(tmp_path, capsys, settings):
    save_random_model(tmp_path, "rtiny")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "a.png").write_bytes(face(3))
    assert inference(["--model", str(tmp_path), str(tmp_path / "a.png"), "--device", "cpu"]) == 2
    assert printed_plainly(capsys).err.count("\n") == 1


def test_names_of_tensors_reach_the_terminal_plainly(tmp_path, capsys):
    torch.save({ESCAPE: torch.ones(3)}, tmp_path / "model.pt")
    assert inference(["--model", str(tmp_path), "a.png", "--device", "cpu"]) == 2
    assert printed_plainly(capsys).err.count("\n") == 1


def test_names_of_sets_reach_the_terminal_plainly(tmp_path, capsys):
    save_random_model(tmp_path / "run", "rtiny")
    sets = tmp_path / "sets"
    sets.mkdir()
    write_bin(sets / f"{ESCAPE}.bin", EncodedPairs([encode(i) for i in range(8)], [True, False] * 2), 112, 95)
    (sets / f"b{ESCAPE}.bin").write_bytes(b"no set")
    report = tmp_path / "a.html"
    command = ["--model", str(tmp_path / "run"), "--data", str(sets), "--folds", "2", "--report", str(report)]
    assert eval_pairs([*command, "--device", "cpu"]) == 1
    printed_plainly(capsys)


@pytest.mark.parametrize("name", ["../../up", "/etc/x", "a\0b$\\frac$", "<script>alert(1)</script>"])
def test_pictures_of_a_report_stay_in_its_folder(tmp_path, name):
    labels, scores = np.array([1, 0] * 10), np.linspace(0, 1, 20)
    pairs = PairScores(roc(labels, scores), scores, labels, np.arange(20), np.arange(20))
    folder = tmp_path / "deep" / "reports"
    folder.mkdir(parents=True)
    files = write_report(folder / "a.html", name, [Section(name, pairs=pairs), Section("other")], {})
    assert {file.resolve().parent for file in files} == {folder}
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != folder] == []
    assert "<script" not in files[0].read_text()
