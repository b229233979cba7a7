"""torchrun starts the ranks anew, and its store still has the keys of the attempts before."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from paths import ROOT
from ranks import free_port
from utils import distributed

pytestmark = pytest.mark.distributed

SCRIPT = """
import os, signal, sys
from utils.distributed import all_gather_objects, init_ranks
from utils.fate import one_fate

ranks = init_ranks("cpu", timeout_s=60)
with one_fate():
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    for number in range(4):
        assert all_gather_objects((attempt, number)) == [(attempt, number)] * 2
        if attempt < 2 and number == 2 and ranks.rank == attempt:  # once without and once with rank 0
            os.kill(os.getpid(), signal.SIGKILL)
    sys.stdout.write(f"attempt {attempt} is complete\\n")
"""


@pytest.mark.slow
@pytest.mark.parametrize("port", [["--standalone"], []], ids=["standalone", "static"])
def test_ranks_come_together_again_after_each_death(tmp_path, port):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--max-restarts=2"]
    command += port or [f"--master_port={free_port()}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, tmp_path / "script.py"], env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("attempt 2 is complete") == 2
    assert done.stderr.count("has gone without a word") >= 1


@pytest.fixture
def launchers_store(monkeypatch):
    """A store that outlives the attempts, as torchrun's."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    return server


def meet(world_size):
    """The stores in which the ranks of one attempt meet; rank 0 comes last."""
    with ThreadPoolExecutor(world_size) as pool:
        ranks = [
            pool.submit(distributed._store_of_this_attempt, rank, world_size, 20)
            for rank in reversed(range(world_size))
        ]
        return [rank.result() for rank in ranks]


def test_no_attempt_sees_the_keys_of_another(launchers_store):
    """Nodes join and leave, which torchrun does not count as restarts: an attempt can look like one before it."""
    for attempt, world_size in enumerate([1, 3, 1, 3, 2, 3]):
        stores = meet(world_size)
        assert not any(store.check(["address"]) for store in stores)
        stores[0].set("address", str(attempt))
        assert [store.get("address") for store in stores] == [str(attempt).encode()] * world_size


def test_what_half_an_attempt_has_left_is_no_answer(launchers_store):
    """An attempt that is broken off before its ranks have met: one has given its word, one has got its answer."""
    for rank in (1, 2):
        launchers_store.set(f"mhs_arcface/word/{rank}", f"old {rank}")
    launchers_store.set("mhs_arcface/answer/old 1", "old attempt")
    launchers_store.add("mhs_arcface/joined/old attempt", 1)
    stores = meet(3)
    stores[0].set("address", "new")
    assert [store.get("address") for store in stores] == [b"new"] * 3


def test_ranks_that_do_not_come_are_an_error_within_the_limit(launchers_store, monkeypatch):
    names = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    expected = r"rank 0 on \S+ has not met all 2 ranks at 127.0.0.1:\d+ \(timeout_s = 1\): not every rank has come"
    with pytest.raises(ConnectionError, match=expected):
        distributed.init_ranks("cpu", timeout_s=1)
    assert not dist.is_initialized()
