"""The raw data that a benchmark leaves: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any


def read_records(paths: Sequence[Path], keys: Collection[str] = ()) -> list[dict[str, Any]]:
    """The records of several files, in order.

    Raises:
        OSError: a file that cannot be read.
        ValueError: a line that is no JSON object, or that lacks one of ``keys``.
    """
    return [
        _read_line(line, keys, f"{path}, line {number}")
        for path in paths
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
    ]


def _read_line(line: str, keys: Collection[str], where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a record, a JSON object, got {line[:40]!r}: give a file that is whole")
    if missing := [key for key in keys if key not in record]:
        raise ValueError(f"{where}: expected a record of this benchmark, got one without {missing[0]!r}")
    return record


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Replace the file by these records; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
