"""A process of an interpreter that has mxnet, asked through lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = Path(__file__).with_name("mxnet_reader.py")


def find_mxnet_python() -> Path:
    """The interpreter that MXNET_PYTHON names, or the one that ``make mxnet`` sets up.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(os.environ.get("MXNET_PYTHON") or ROOT / ".venv-mxnet" / "bin" / "python")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no interpreter with mxnet; run `make mxnet`, or set MXNET_PYTHON to one")
    return path


class MxnetProcess:
    """Runs ``mxnet_reader.py`` on a record file; a context manager that ends it.

    Raises:
        FileNotFoundError: there is no interpreter with mxnet.
        RuntimeError: the process ended; its own message is on stderr.
    """

    versions: dict[str, str]

    def __init__(self, rec: Path, idx: Path) -> None:
        self._process = subprocess.Popen(
            [find_mxnet_python(), SCRIPT, rec, idx], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions = self.answer()

    def __enter__(self) -> MxnetProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def send(self, job: dict[str, Any]) -> None:
        """Start a job."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to the job."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return cast(dict[str, Any], json.loads(line))

    def _ended(self) -> RuntimeError:
        self._process.communicate()
        return RuntimeError(
            f"the mxnet process ended with status {self._process.returncode}; `make mxnet` sets up what it needs "
            "(mxnet 1.9.1, numpy 1.23.5, pillow)"
        )
