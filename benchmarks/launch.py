"""Runs a benchmark's script on several ranks of this machine, each in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, cast


def run_script(script: str | Path, text: str, ranks: int, threads: int) -> dict[str, Any]:
    """Start ``script text`` once for each rank; the JSON object in the last line that rank 0 prints.

    What rank 0 prints before it, such as warnings, goes to stderr.

    Args:
        script: a Python file.
        text: its argument.
        ranks: processes; with more than one they find each other by torch's environment variables, over loopback.
        threads: of each process.

    Raises:
        RuntimeError: a process failed; its own message is on stderr.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if ranks > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment |= {"GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, script, text],
            env=environment | ({"RANK": str(r), "LOCAL_RANK": str(r)} if ranks > 1 else {}),
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in range(ranks)
    ]
    try:
        outputs = [p.communicate()[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    codes = [p.returncode for p in processes]
    if any(codes):
        raise RuntimeError(f"exit codes {codes}")
    *before, last = outputs[0].splitlines()
    print(*before, sep="\n", end="\n" * bool(before), file=sys.stderr)  # warnings
    return cast(dict[str, Any], json.loads(last))
