"""The folder that a run leaves, and how a second run is kept from spoiling it."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

from training.checkpoint import list_checkpoints
from utils.config import Config
from utils.distributed import Ranks, all_gather_objects, barrier, broadcast_object, together

PRECIOUS = ("model.pt", "checkpoints")
REPLACED = ("training.log", "metrics.jsonl", "config.json", "classes.json", "tensorboard")


def check_output(cfg: Config, ranks: Ranks) -> tuple[Path, Path | None]:
    """Look at the run's folder without touching it. Rank 0 does so for all.

    Returns:
        The folder, and the checkpoint to go on from, None for a new run.

    Raises:
        ValueError: the folder holds another run, and neither ``resume`` nor ``overwrite`` is set.
        FileNotFoundError: ``resume`` is set and there is no complete checkpoint.
    """
    output = cfg.output_dir()
    start = together(lambda: _check(output, cfg) if ranks.is_main else None)
    return output, broadcast_object(start)


def open_output(cfg: Config, ranks: Ranks) -> None:
    """Make the run's folder; with ``overwrite``, drop the earlier run.

    Raises:
        ValueError: the ranks do not share the folder, though all are to write checkpoints into it.
        OSError: it cannot be made or written.
    """
    output = cfg.output_dir()
    token = output / ".same_folder"
    together(lambda: _make(output, token, cfg) if ranks.is_main else None)
    barrier()
    seen = all_gather_objects((platform.node(), token.exists()))
    if ranks.is_main:
        token.unlink()
    apart = [f"rank {rank} on {host}" for rank, (host, sees) in enumerate(seen) if not sees]
    if apart and cfg.save_all_states:
        raise ValueError(
            f"{output} is another folder for {', '.join(apart)}: all ranks write checkpoints into it, so put it on "
            "storage that the hosts share, or set save_all_states = False to leave model.pt only"
        )


def _check(output: Path, cfg: Config) -> Path | None:
    if cfg.resume:
        found = list_checkpoints(output / "checkpoints")
        if not found:
            raise FileNotFoundError(
                f"resume = True, but {output / 'checkpoints'} holds no complete checkpoint; start with resume = False"
            )
        return found[-1]
    present = [name for name in PRECIOUS if (output / name).exists()]
    if present and not cfg.overwrite:
        raise ValueError(
            f"{output} holds another run ({', '.join(present)}): set resume = True to go on with it, another output "
            "to keep it, or overwrite = True to lose it"
        )
    return None


def _make(output: Path, token: Path, cfg: Config) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        token.touch()
        if cfg.resume:
            return
        for path in (output / name for name in (*PRECIOUS, *REPLACED)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as problem:
        raise OSError(
            f"cannot write the output folder {output} ({problem}): choose another with output=FOLDER"
        ) from None
