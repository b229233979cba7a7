"""The tests marked ``gpu``, a process for each file, several at a time, none without a limit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu.timing import ROOT

FOLDER = ROOT / "tests" / "gpu"
AT_ONCE = 4  # one device is shared by all: this many contexts and small models fit on any
_VERDICT = re.compile(
    r"^(?P<test>tests/gpu/\S+?::.+?) (?P<verdict>PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)\b(?P<why>.*)$"
)
_BEGUN = re.compile(r"^(tests/gpu/\S+?::\S+)", re.M)
_ONE_HOST = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}  # all ranks are here: no name service is needed
_TAIL = 6000  # characters of a failed file's output that are kept


def run_suite(limit_s: float, tell: Callable[[str], None], files: Sequence[Path] = ()) -> dict[str, Any]:
    """Run the tests; each file may take ``limit_s``, after which it is ended and what it hung in is named.

    Returns:
        ``tests``: verdict of each test by name; ``counts`` of the verdicts; ``files``: seconds, exit status and, if
        something failed, the end of the output of each file; ``took_s``.
    """
    begin_s = time.monotonic()
    chosen = list(files) or sorted(FOLDER.glob("test_*.py"))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(lambda file: _run_file(file, limit_s, tell), chosen))
    tests: dict[str, str] = {}
    for result in results:
        tests |= result.pop("tests")
    counts: dict[str, int] = {}
    for verdict in tests.values():
        word = verdict.split(" ")[0]
        counts[word] = counts.get(word, 0) + 1
    return {
        "tests": tests,
        "counts": counts,
        "files": {result.pop("file"): result for result in results},
        "took_s": time.monotonic() - begin_s,
    }


def _run_file(file: Path, limit_s: float, tell: Callable[[str], None]) -> dict[str, Any]:
    begin_s = time.monotonic()
    # -W default: a warning that a version of torch or NCCL is new to give is to be read, not to hide what works.
    options = ["-v", "--tb=short", "-p", "no:cacheprovider", "-W", "default", "--color=no", "--show-capture=no"]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "pytest", *options, str(file)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**_ONE_HOST, **os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "250"},
        )
        hung = False
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            hung = True
        finally:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        text = output.read()
    tests = verdicts(text)
    if hung or process.returncode not in (0, 5):
        begun = [name for name in _BEGUN.findall(text) if name not in tests]
        if hung or process.returncode < 0:
            why = f"hung: no end within {limit_s:.0f} s" if hung else f"died of signal {-process.returncode}"
            tests[begun[-1] if begun else file.name] = f"ERROR {why}"
        elif not any(verdict.startswith(("FAILED", "ERROR")) for verdict in tests.values()):
            tests[file.name] = f"ERROR pytest ended with status {process.returncode}"
    bad = any(verdict.startswith(("FAILED", "ERROR")) for verdict in tests.values())
    tell(f"{file.name}: {len(tests)} tests, {time.monotonic() - begin_s:.0f} s{', SOMETHING FAILED' if bad else ''}")
    return {
        "file": file.name,
        "tests": tests,
        "took_s": time.monotonic() - begin_s,
        "status": process.returncode,
        "warnings": len(re.findall(r"Warning: ", text)),
        **({"output": text[-_TAIL:]} if bad else {}),
    }


def verdicts(text: str) -> dict[str, str]:
    """What ``pytest -v`` says of each test: its verdict, and of a skipped one the reason."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := _VERDICT.match(line):
            why = re.sub(r"\s*\[\s*\d+%\]\s*$", "", match["why"]).strip()
            found[match["test"]] = f"{match['verdict']} {why}".strip()
    return found
