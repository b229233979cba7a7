"""The folder that a run leaves: whose it is, where a run goes on from, and how none spoils another."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from training.checkpoint import ASIDE, BEST, find_checkpoint, list_checkpoints, step_of
from training.run_lock import FolderLock
from utils.config import Config
from utils.distributed import Ranks, all_gather_objects, barrier, broadcast_object, together
from utils.log import log

PRECIOUS = ("model.pt", "model_best.pt", "checkpoints")
REPLACED = ("training.log", "metrics.jsonl", "config.json", "classes.json", "tensorboard", BEST)


@dataclass(frozen=True)
class Start:
    """Where a run goes on from."""

    checkpoints: list[Path] = field(default_factory=list)  # to be tried in this order; none: a new run
    falls_back: bool = False  # to the next one if one is damaged


class RunFolder:
    """A run's folder, looked at by rank 0 for all.

    Args:
        cfg: the run's.
        ranks: this process among its peers.
    """

    def __init__(self, cfg: Config, ranks: Ranks) -> None:
        self.path = cfg.output_dir()
        self._cfg, self._ranks = cfg, ranks
        self.lock = FolderLock(self.path)
        self._is_restart = any(
            os.environ.get(name, "0").isdigit() and int(os.environ.get(name, "0")) > 0
            for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
        )

    def look(self) -> Start:
        """Find where to go on from, without touching anything; from here on, an existing folder is locked.

        Raises:
            ValueError: the folder is in use, or holds another run and neither ``resume`` nor ``overwrite`` is set.
            FileNotFoundError: ``resume`` is set and there is no checkpoint.
        """
        found = together(lambda: self._look() if self._ranks.is_main else None)
        start: Start = broadcast_object(found)
        return start

    def open(self, chosen: Path | None) -> None:
        """Make the folder; for a new run drop what an overwritten one has left.

        Checkpoints newer than the one gone on from are of a course that is left: they get another name.

        Args:
            chosen: the checkpoint gone on from, None for a new run.

        Raises:
            ValueError: the folder is in use, or the ranks do not share it, though all write checkpoints into it.
            OSError: it cannot be made or written.
        """
        token = self.path / ".same_folder"
        together(lambda: self._make(token, chosen) if self._ranks.is_main else None)
        barrier()
        seen = all_gather_objects((platform.node(), token.exists()))
        if self._ranks.is_main:
            token.unlink()
        apart = [f"rank {rank} on {host}" for rank, (host, sees) in enumerate(seen) if not sees]
        if apart and self._cfg.save_all_states:
            raise ValueError(
                f"{self.path} is another folder for {', '.join(apart)}: all ranks write checkpoints into it, so put "
                "it on storage that the hosts share, or set save_all_states = False to leave model.pt only"
            )

    def _look(self) -> Start:
        if self.path.is_dir() and os.access(self.path, os.W_OK):
            self.lock.take()
        own = list_checkpoints(self.path / "checkpoints")[::-1]
        resume = self._cfg.resume
        if (resume == "auto" or self._is_restart) and own:
            return Start(own, falls_back=True)
        if resume is True:
            if not own:
                raise FileNotFoundError(
                    f"resume = True, but {self.path / 'checkpoints'} holds no complete checkpoint; resume = 'auto' "
                    "goes on where there is one and starts anew where there is none"
                )
            return Start(own[:1])
        start = Start()
        if isinstance(resume, str) and resume != "auto":
            start = Start([find_checkpoint(Path(resume).expanduser())])
            if start.checkpoints[0].resolve().parent == self.path / "checkpoints":
                return start
        present = [name for name in PRECIOUS if (self.path / name).exists()]
        if present and not self._cfg.overwrite and not self._is_restart:
            raise ValueError(
                f"{self.path} holds another run ({', '.join(present)}): set resume = True to go on with it, another "
                "output to keep it, or overwrite = True to lose it"
            )
        return start

    def _make(self, token: Path, chosen: Path | None) -> None:
        is_own = chosen is not None and chosen.resolve().parent == self.path / "checkpoints"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.take()
            token.touch()
            for left in (*self.path.glob(".*.tmp"), *self.path.glob("checkpoints/.step_*")):
                _remove(left)  # of a process that was killed while it wrote
            if not is_own:
                for name in (*PRECIOUS, *REPLACED):
                    _remove(self.path / name)
            elif chosen is not None:
                _set_aside(self.path / "checkpoints", step_of(chosen))
        except OSError as problem:
            raise OSError(
                f"cannot write the output folder {self.path} ({problem}): choose another with output=FOLDER"
            ) from None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _set_aside(folder: Path, step: int) -> None:
    """Rename the checkpoints after ``step``."""
    for later in list_checkpoints(folder):
        if step_of(later) > step:
            target = later.with_name(ASIDE + later.name)
            _remove(target)
            later.rename(target)
            log.warning("%s is of a course that this run leaves: it is kept as %s until you remove it", later, target)
