"""Start a file under a launcher, one process for each GPU."""

import os
import subprocess
import sys

from paths import ROOT


def run_launched(file, world_size, *arguments, device="cuda", module="torch.distributed.run", limit_s=90):
    """Run ``file ARGUMENTS... DEVICE`` on so many ranks; its output. AssertionError if a rank fails or none ends."""
    command = [sys.executable, "-m", module, "--standalone", f"--nproc_per_node={world_size}", str(file)]
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*command, *map(str, arguments), *([device] if device else [])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr
