"""The command for a GPU, walked through on the CPU, and what its page says of made-up records."""

import importlib
import json
from contextlib import nullcontext

import pytest
import torch

from benchmarks.classifier_case import Case, Labels
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import classifier as gpu_classifier
from benchmarks.gpu import suite
from benchmarks.gpu.page import floor_ms, make_page
from benchmarks.gpu.rows import all_rows, chosen, quick_rows
from benchmarks.gpu.timing import counting_waits
from benchmarks.gpu.training import config_of, known_settings
from benchmarks.gpu.worker import KINDS, Worker, measure
from heads import storage as head_storage
from pretend_device import NAME, BackgroundAtOnce, PretendDevice

CPU = torch.device("cpu")
PEAKS = {"fp16_tflop_per_s": 800.0, "float32_tflop_per_s": 50.0, "tf32_tflop_per_s": 400.0}
PEAKS |= {"copy_gb_per_s": 2000.0, "to_device_gb_per_s": 50.0, "to_host_gb_per_s": 25.0}


@pytest.mark.slow
def test_every_path_is_walked_without_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert command.main(["--device", "cpu", "--quick", "--skip-tests", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.json", "gpu.md"}
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {row["kind"] for row in found["rows"]} == KINDS.keys() - {"facts"}
    assert not found["left_out"]
    assert not [row for row in found["rows"] if "error" in row]
    assert found["facts"]["torch"] == torch.__version__
    assert all(row["waits_per_step"] == 0 for row in found["rows"] if "step_ms" in row)
    shares = [row for row in found["rows"] if row["table"] == "share"]
    assert [row["storage"] for row in shares] == ["device", "host", "file"]
    assert all(0 <= row["classifier_share"] < 1 < row["images_per_s"] for row in shares)
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("# A walk over every path: not yet run on a GPU")
    for title in ("Images a second", "The classifier's step", "What the input gives", "Synchronising calls"):
        assert f"## {title}\n" in page


def test_without_a_gpu_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--out", str(tmp_path)]) == 2
    assert "torch sees no GPU here; --device cpu --quick walks every path" in capsys.readouterr().err
    assert command.main(["--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "--device cpu needs --quick" in capsys.readouterr().err
    assert command.main(["--only", "share", "--list"]) == 0
    assert "25 s  share network=r100 precision=bf16 batch=128 classes=2000000" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_rows_without_time_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Worker, "ask", lambda self, kind, case, limit_s: {"torch": "2"})
    assert (
        command.main(["--device", "cpu", "--quick", "--skip-tests", "--minutes", "1e-9", "--out", str(tmp_path)]) == 0
    )
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert not found["rows"]
    assert len(found["left_out"]) == len(quick_rows())
    assert "0 s were left" in (tmp_path / "gpu.md").read_text()


@pytest.mark.parametrize(("minutes", "table", "status"), [("0.5", "left_out", 0), ("60", "rows", 1)])
def test_a_row_that_the_time_cuts_is_left_out_and_no_failure(tmp_path, monkeypatch, minutes, table, status):
    limits = []

    def ask(self, kind, case, limit_s):
        limits.append(limit_s)
        return {} if kind == "facts" else {**case, "error": "no answer", "is_late": True}

    monkeypatch.setattr(Worker, "ask", ask)
    line = ["--device", "cpu", "--quick", "--skip-tests", "--minutes", minutes, "--out", str(tmp_path)]
    assert command.main(line) == status
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert (len(found[table]), len(found["rows"]) + len(found["left_out"])) == (len(quick_rows()),) * 2
    assert not any("is_late" in row for row in found[table])
    assert ("cut after 0 s: the time was over" in (tmp_path / "gpu.md").read_text()) == (status == 0)
    assert all(20 <= limit_s <= 60 for limit_s in limits[1:])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--device foo --list", "--device must be cuda, cuda:N or cpu, got foo"),
        ("--device cpu:0 --quick", "--device must be cuda, cuda:N or cpu, got cpu:0"),
        ("--device cuda:2 --out {}", "--device cuda:2 is not among those that torch sees: cuda:0, cuda:1"),
        ("--minutes 0 --out {}", "--minutes must be a number above 0, got 0"),
        ("--minutes nan --out {}", "--minutes must be a number above 0, got nan"),
        ("--skip-tests --skip-tables --out {}", "together leave nothing to do: give one of them"),
        ("--device cpu --quick", "--out is missing: give a folder for gpu.json and gpu.md, or --list"),
        ("--out {}/file", "--out must be a folder, and a file is in its place"),
        ("--out {}/file/below", "--out must be a folder, and a file is in its place"),
    ],
)
def test_a_wrong_argument_is_one_line(tmp_path, monkeypatch, capsys, line, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    (tmp_path / "file").write_text("")
    assert command.main(line.format(tmp_path).split()) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert said in told
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["test_gpu_classifier", "test_gpu_runs"])
def test_the_want_of_a_second_gpu_is_named_only_where_there_is_one(name):
    tests = vars(importlib.import_module(f"gpu.{name}")).values()
    marks = [mark for test in tests if callable(test) for mark in getattr(test, "pytestmark", [])]
    wanting = [mark.args for mark in marks if mark.kwargs.get("reason") == "this machine has one GPU"]
    assert wanting == [(torch.cuda.device_count() == 1,)] * len(wanting) != []


def test_a_row_that_fails_is_an_error_of_its_own(tmp_path):
    answer = measure("training", {"network": "r51", "batch": 2}, CPU, tmp_path)
    assert "unknown network 'r51'" in answer["error"]
    assert "Traceback" in answer["traceback"]
    assert answer["network"] == "r51"


def test_a_row_that_hangs_or_dies_ends_its_process_alone(tmp_path):
    worker = Worker("cpu", tmp_path)
    late = worker.ask("plan", {"network": "rtiny"}, 0.01)
    assert (late["error"], late["is_late"]) == ("no answer within 0 s", True)
    worker._start()
    worker._process.kill()
    worker._process.wait()
    dead = worker.ask("plan", {"network": "rtiny"}, 30)
    assert "has ended" in dead["error"]
    assert "is_late" not in dead
    assert worker._process is None


def test_rows_are_chosen_by_table_or_name():
    rows = all_rows(16, known_settings() | {"compile"})
    assert [row.table for row in rows[:2]] == ["peaks", "share"]
    compiled = [row.case["network"] for row in rows if row.table == "compile"]
    assert [row.table for row in rows[-len(compiled) :]] == ["compile"] * len(compiled)
    assert (len(compiled), compiled[-1]) == (4, "r100")
    assert {row.table for row in chosen(rows, ["share", "compile"])} == {"peaks", "share", "compile"}
    assert all("r100" in row.name for row in chosen(rows, ["r100"])[1:])
    assert len({row.name for row in rows}) == len(rows)
    assert {row.kind for row in rows} == KINDS.keys() - {"facts"}
    with pytest.raises(ValueError, match="--only r101 chooses nothing; give a table"):
        chosen(rows, ["r101"])


def test_rows_of_settings_that_do_not_exist_are_left_out():
    assert not [row for row in all_rows(16, {"gradient_checkpointing"}) if row.table == "compile"]
    assert [row for row in all_rows(16, {"compile"}) if row.table == "compile"]


def test_every_row_is_a_recipe_that_the_project_takes(tmp_path):
    for row in all_rows(16, known_settings()):
        if row.kind in ("training", "plan"):
            cfg = config_of(row.case, CPU, tmp_path)
            assert (cfg.network, cfg.batch_size) == (row.case["network"], row.case["batch"])
            assert cfg.amp_dtype() == {"fp16": torch.float16, "bf16": torch.bfloat16}.get(row.case["precision"])
            assert cfg.class_count() == row.case["classes"]
            assert all(getattr(cfg, name) == value for name, value in row.settings.items())


def test_floors_are_operations_and_bytes_over_what_was_measured():
    training = {"network": "r50", "precision": "fp16", "step_ms": 1.0, "flop_per_step": 8e12}
    assert floor_ms(training, PEAKS) == pytest.approx(10)
    assert floor_ms({**training, "precision": "float32", "tf32_convolutions": True}, PEAKS) == pytest.approx(20)
    assert floor_ms({**training, "flop_per_step": None}, PEAKS) is None
    classifier = {"storage": "device", "step_ms": 1.0, "floor_flop": 1e11, "floor_bytes": 4e9}
    assert floor_ms(classifier, PEAKS) == pytest.approx(2 + 2)
    assert floor_ms({**classifier, "storage": "file"}, PEAKS) == pytest.approx(2 + 40 + 80)
    assert floor_ms(classifier, None) is None


def test_the_page_shows_what_failed_and_what_was_left_out():
    row = {"table": "step", "kind": "training", "name": "step network=r50", "network": "r50", "batch": 128}
    tests = {"counts": {"FAILED": 1, "SKIPPED": 2}, "took_s": 3.0}
    tests |= {"tests": {"a": "FAILED", "b": "SKIPPED (one GPU)", "c": "SKIPPED (one GPU)"}}
    tests |= {"files": {"test_a.py": {"output": "AssertionError: 1 | 2"}}}
    page = make_page(
        {
            "is_gpu": True,
            "command": "x",
            "took_s": 1.0,
            "budget_s": 2.0,
            "suite": tests,
            "rows": [{**row, "error": "OutOfMemoryError: no | room\nfor it"}],
            "left_out": [{"name": "compile r50", "left_out": "about 70 s, 3 s were left"}],
        }
    )
    assert "| step network=r50 | OutOfMemoryError: no / room for it |" in page
    assert "| compile r50 | about 70 s, 3 s were left |" in page
    assert "| SKIPPED (one GPU) | 2 |" in page
    assert "AssertionError: 1 | 2" in page


PYTEST_SAYS = """
tests/gpu/test_x.py::test_a[cpu-1 x] PASSED                               [ 25%]
tests/gpu/test_x.py::test_b SKIPPED (torch sees no GPU)                   [ 50%]
tests/gpu/test_x.py::test_c FAILED                                        [ 75%]
tests/gpu/test_x.py::test_d """


def test_verdicts_are_read_from_pytests_own_words():
    assert suite.verdicts(PYTEST_SAYS) == {
        "tests/gpu/test_x.py::test_a[cpu-1 x]": "PASSED",
        "tests/gpu/test_x.py::test_b": "SKIPPED (torch sees no GPU)",
        "tests/gpu/test_x.py::test_c": "FAILED",
    }


def test_a_file_of_tests_that_hangs_is_ended_and_named(tmp_path):
    file = tmp_path / "test_hanging.py"
    file.write_text("import time\n\n\ndef test_it():\n    time.sleep(60)\n")
    found = suite.run_suite(2, lambda text: None, [file])
    assert list(found["tests"].values()) == ["ERROR hung: no end within 2 s"]
    assert found["took_s"] < 20


def test_a_cpu_makes_nobody_wait():
    with counting_waits(CPU) as waits:
        torch.ones(1).item()
    assert waits.per_step(2) == {"waits_per_step": 0, "waits_of_threads_per_step": 0, "waits_places": {}}


@pytest.mark.parametrize("storage", ["device", "host", "file"])
def test_no_path_of_the_classifier_waits_for_the_device(tmp_path, monkeypatch, storage):
    """The very steps that the tables time, on a pretended device; what the heads' own thread waits for aside."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # it knows real devices only
    case = Case("mhs", storage, 600, 4, 8, 16, 1, "none", 6, 64, False, 2, 1.0, str(tmp_path))
    with PretendDevice() as pretended:
        monkeypatch.setattr(head_storage, "single_threaded_worker", lambda device, name: BackgroundAtOnce(pretended))
        steps = gpu_classifier.Steps(case, torch.bfloat16, NAME)
        labels = Labels(case, 0)
        coming = iter(labels.draw(20))
        for _ in range(3):
            steps.make(coming)
        pretended.waits.clear()
        losses = [steps.make(coming) for _ in range(8)]
        assert pretended.waits == []
        float(losses[-1])
        assert pretended.waits == ["item"]  # so it would have been seen
        steps.close()
