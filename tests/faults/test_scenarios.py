"""A fault in earnest; ``make faults`` plays all of them, see docs/reliability.md."""

import json
import os
import subprocess
import sys

import pytest

from faults.__main__ import SCENARIOS
from faults.scenario import why_not
from paths import ROOT

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
QUICK = [name for name, scenario in SCENARIOS.items() if scenario.quick]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Every quick scenario once, in a process of its own, which may mount disks; the rows by scenario."""
    out = tmp_path_factory.mktemp("faults") / "rows.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "faults", "--only", *QUICK, "--seeds", "1", "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert out.exists(), done.stdout + done.stderr
    return {row["scenario"]: row for row in map(json.loads, out.read_text().splitlines()[1:])}


@pytest.mark.parametrize("name", QUICK)
def test_a_fault_ends_the_run_soon_says_why_and_loses_nothing(rows, name):
    row = rows[name]
    if "skipped" in row:
        pytest.skip(row["skipped"])
    assert row["problems"] == []
    assert row["equal"] is True
    assert row["gone_s"] < 30


def test_scenarios_that_need_more_than_a_user_may_say_so():
    needing = [scenario for scenario in SCENARIOS.values() if scenario.needs]
    assert len(needing) > 10
    for need in {need for scenario in needing for need in scenario.needs}:
        assert why_not(need) is None or "here" in why_not(need) or "missing" in why_not(need)
