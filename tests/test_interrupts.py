"""Ctrl-C at any moment of a command: one line, its status, and no traceback."""

import ast
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from data.records.writer import write_face_records
from face_files import FACES
from paths import ROOT
from tiny_runs import TINY, metrics
from training.checkpoint import list_checkpoints

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals to groups of processes")


def start(command, code=""):
    """A command in a process group of its own, with Ctrl-C as a terminal's shell leaves it."""
    return subprocess.Popen(
        [sys.executable, *(["-c", code] if code else command)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def end(process):
    """Ctrl-C for the whole group; status and stderr."""
    try:
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, errors


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_whose_reader_has_gone_finishes_its_work(tmp_path, unbuffered):
    """As in ``| head -1``."""
    write_face_records(tmp_path, FACES)
    before = (tmp_path / "train.idx").read_bytes()
    (tmp_path / "train.idx").unlink()
    command = [sys.executable, "-m", "tools.rebuild_index", str(tmp_path)]
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 0)
    process.stderr.close()
    assert (tmp_path / "train.idx").read_bytes() == before


SLOW_IMPORT = """
import sys, types, runpy
class Finder:
    def find_spec(self, name, *_):
        if name == "{module}":
            print("importing", flush=True)
            import time; time.sleep(60)
sys.meta_path.insert(0, Finder())
sys.argv = ["{name}"]
runpy.{run}("{name}", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("run", "name", "module", "status", "said"),
    [
        ("run_path", "train.py", "torch", 130, "train.py"),
        ("run_path", "inference.py", "numpy", -signal.SIGINT, "inference.py"),
        ("run_module", "tools.pack_rec", "numpy", -signal.SIGINT, "pack_rec"),
    ],
)
def test_ctrl_c_while_a_command_starts_is_one_line(run, name, module, status, said):
    process = start([], "import sys; sys.path.insert(0, '.')" + SLOW_IMPORT.format(run=run, name=name, module=module))
    assert process.stdout.readline() == "importing\n", process.stderr.read()
    assert end(process) == (status, f"{said}: interrupted\n")


def is_command(path):
    return path.name == "__main__.py" or re.search(r"^if __name__ ==", path.read_text(), re.MULTILINE)


PACKAGES = sorted({path.parent for path in ROOT.glob("*/*.py")} - {ROOT / n for n in ("benchmarks", "tests", "docs")})
COMMANDS = [
    path
    for files in (sorted(ROOT.glob("*.py")), *(sorted(package.rglob("*.py")) for package in PACKAGES))
    for path in files
    if is_command(path)
]
COMMANDS.remove(ROOT / "tools" / "make_demo_faces.py")  # it first sees to it that the project can be imported


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_takes_care_of_ctrl_c_before_it_imports_what_takes_long(path):
    first = next(node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If))
    names = [alias.name for node in ast.walk(first) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert names == ["ends_at_once" if path.stem == "train" else "end_in_one_line"]
    before = [node for node in ast.parse(path.read_text()).body if node.lineno < first.lineno]
    assert all(node.module == "__future__" for node in before if isinstance(node, ast.ImportFrom))
    assert not any(isinstance(node, ast.Import) for node in before)


def test_a_run_saves_at_ctrl_c_though_the_terminal_interrupts_its_workers_too(tmp_path):
    options = [f"output={tmp_path}", "num_epoch=100000", "num_workers=1"]
    process = start(["train.py", TINY, *options])
    for line in process.stdout:
        if "Global Step: 2 " in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    last = printed.strip().splitlines()[-1]
    steps = max(metrics(tmp_path))
    assert last.endswith(f"stopped by Ctrl-C after step {steps}; resume = 'auto' goes on from there")
    assert list_checkpoints(tmp_path / "checkpoints")[-1].name == f"step_{steps}"


def test_a_thread_that_waits_for_ever_does_not_keep_a_process_from_ending():
    code = """
import sys, threading, time
from utils.processes import ends_soon
threading.Thread(target=time.sleep, args=(60,)).start()
with ends_soon(0.5):
    sys.exit(7)
"""
    process, begin_s = start([], code), time.monotonic()
    _, errors = process.communicate(timeout=50)
    assert process.returncode == 7
    assert errors == "a thread still waits, for a disk or a device that does not answer: ended\n"
    assert time.monotonic() - begin_s < 40
