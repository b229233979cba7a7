"""Run a function on N gloo ranks on the CPU; hand back what each rank returned, or how each process ended."""

import contextlib
import multiprocessing
import os
import random
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from utils.distributed import close_ranks

multiprocessing.set_forkserver_preload(["torch", "torch.distributed", "torch._dynamo"])


def _entry(rank: int, fn: Callable[..., Any], world_size: int, folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=40),
        )
        torch.save(fn(rank, world_size, *args), f"{folder}/{rank}.pt")
    except BaseException:
        Path(folder, f"{rank}.err").write_text(traceback.format_exc())
        raise
    finally:
        close_ranks()


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120) -> list[Any]:
    """Call ``fn(rank, world_size, *args)`` in ``world_size`` processes joined by a gloo group.

    ``fn`` must be importable (a module-level function). Raises AssertionError with the tracebacks of every rank
    that failed, TimeoutError when they do not all end in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = mp.start_processes(
            _entry, (fn, world_size, folder, args), nprocs=world_size, join=False, start_method="forkserver"
        )
        end = time.monotonic() + timeout_s
        try:
            while not context.join(timeout=1):
                if time.monotonic() > end:
                    raise TimeoutError(f"{fn.__name__} hung on {world_size} ranks")
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            texts = {p.stem: p.read_text() for p in sorted(Path(folder).glob("*.err"))}
            report = "\n".join(f"--- rank {rank} ---\n{text}" for rank, text in texts.items())
            raise AssertionError(report or str(error)) from None
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(world_size)]


def free_port() -> int:
    """A port that nothing listens at, below those that the system gives to connections: none takes it meanwhile."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port
    raise OSError("no port between 20000 and 29999 is free")


def _launched(
    rank: int, world_size: int, port: int, folder: Path, fn: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(world_size))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    with (folder / f"{rank}.err").open("w") as file:
        os.dup2(file.fileno(), 2)
    fn(rank, *args)


def launch_ranks(
    fn: Callable[..., Any], world_size: int, folder: Path, *args: Any, limit_s: float = 90
) -> tuple[list[tuple[int | None, str]], float]:
    """Call ``fn(rank, *args)`` in processes with a launcher's environment, but without one that would end the others.

    Returns each one's exit status and what it wrote to stderr, and the seconds from the first end to the last.
    AssertionError if that takes more than ``limit_s``.
    """
    context, port = multiprocessing.get_context("forkserver"), free_port()
    processes = [
        context.Process(target=_launched, args=(rank, world_size, port, folder, fn, args))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    first_end: float | None = None
    try:
        while any(process.is_alive() for process in processes):
            if first_end is None and not all(process.is_alive() for process in processes):
                first_end = time.monotonic()
            assert first_end is None or time.monotonic() - first_end < limit_s, "some ranks go on without the others"
            time.sleep(0.05)
        took_s = time.monotonic() - (first_end or time.monotonic())
        return [(process.exitcode, (folder / f"{r}.err").read_text()) for r, process in enumerate(processes)], took_s
    finally:
        for process in processes:
            process.kill()
            process.join()
