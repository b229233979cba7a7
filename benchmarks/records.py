"""The raw data that a benchmark leaves: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_records(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The records of several files, in order; ValueError for a line that is no JSON."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Replace the file by these records; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
