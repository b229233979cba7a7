"""The folder that a run leaves: whose it is, where a run goes on from, and how none spoils another."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.checkpoint import ASIDE, BEST, REPLACED, find_checkpoint, list_checkpoints, step_of
from training.run_lock import FolderLock
from utils.atomic import write_json
from utils.distributed import Ranks, all_gather_objects, barrier, broadcast_object, together
from utils.log import log
from utils.processes import process_of
from utils.settings import Config
from utils.text import parse_json

MODELS = ("model.pt", "model_raw.pt", "model_best.pt")
OTHERS = ("training.log", "metrics.jsonl", "config.json", "classes.json", "tensorboard", BEST)
LAUNCH = ".launch"  # who started the run that the folder holds


@dataclass(frozen=True)
class Start:
    """Where a run goes on from."""

    checkpoints: list[Path] = field(default_factory=list)  # to be tried in this order; none: a new run
    are_own: bool = True  # they are in the run's own folder
    falls_back: bool = False  # to the next one if one is damaged


class RunFolder:
    """A run's folder, looked at by rank 0 for all.

    Args:
        cfg: the run's.
        ranks: this process among its peers.
    """

    def __init__(self, cfg: Config, ranks: Ranks) -> None:
        self.path = cfg.output_dir()
        self.checkpoints = self.path / "checkpoints"
        self.lock = FolderLock(self.path)
        self._cfg, self._ranks = cfg, ranks
        self._start = Start()
        self._agents: list[dict[str, Any]] = []  # of torchrun, that have started the ranks

    def look(self) -> Start:
        """Find where to go on from, without changing anything; from here on, an existing folder is locked.

        Raises:
            ValueError: the folder is in use, or holds another run and neither ``resume`` nor ``overwrite`` is set.
            FileNotFoundError: ``resume`` is set and there is no checkpoint.
            OSError: the folder cannot be read or locked.
        """
        self._agents = _agents()
        self._start = broadcast_object(together(lambda: self._look() if self._ranks.is_main else None))
        if self._start.are_own:
            self._check_seen(all(path.is_dir() for path in self._start.checkpoints))
        return self._start

    def _check_seen(self, sees: bool) -> None:
        """Raise ValueError on all ranks if one does not see in the folder what rank 0 has found or made there."""
        seen = all_gather_objects((platform.node(), sees))
        apart = [f"rank {rank} on {host}" for rank, (host, sees) in enumerate(seen) if not sees]
        if apart and self._cfg.save_all_states:
            raise ValueError(
                f"{self.path} is another folder for {', '.join(apart)}: all ranks write checkpoints into it, so put "
                "it on storage that the hosts share, or set save_all_states = False to leave model.pt only"
            )

    def open(self, chosen: Path | None, step: int) -> None:
        """Make the folder; for a new run drop what an overwritten one has left.

        Checkpoints newer than the one gone on from are of a course that is left: they get another name.

        Args:
            chosen: the checkpoint gone on from, None for a new run.
            step: its step.

        Raises:
            ValueError: the folder is in use, or the ranks do not share it, though all write checkpoints into it.
            OSError: it cannot be made or written.
        """
        token = self.path / ".same_folder"
        together(lambda: self._make(token, chosen, step) if self._ranks.is_main else None)
        barrier()
        sees = token.exists()
        barrier()
        if self._ranks.is_main:
            token.unlink()
        self._check_seen(sees)

    def _look(self) -> Start:
        if self.path.is_dir() and os.access(self.path, os.W_OK):
            self.lock.take()
            self._bring_back()
        own, resume = list_checkpoints(self.checkpoints)[::-1], self._cfg.resume
        is_restart = self._is_of_this_launch()
        if (resume == "auto" or is_restart) and own:
            return Start(own, falls_back=True)
        if resume is True:
            if not own:
                raise FileNotFoundError(
                    f"resume = True, but {self.checkpoints} holds no complete checkpoint; resume = 'auto' goes on "
                    "where there is one and starts anew where there is none"
                )
            return Start(own[:1])
        start = Start()
        if isinstance(resume, str) and resume != "auto":
            found = find_checkpoint(Path(resume).expanduser())
            start = Start([found], self.checkpoints.is_dir() and found.parent.samefile(self.checkpoints))
            if start.are_own:
                return start
        if (present := self._precious()) and not self._cfg.overwrite and not is_restart:
            go_on = "set resume = 'auto' to go on with it, " if own else ""
            raise ValueError(
                f"{self.path} holds another run ({', '.join(present)}): {go_on}choose another output to keep it, or "
                "set overwrite = True to lose it"
            )
        return start

    def _precious(self) -> list[str]:
        """What another run has left that is worth keeping."""
        kept = [*list_checkpoints(self.checkpoints), *self.checkpoints.glob(f"{ASIDE}*")]
        return [name for name in MODELS if (self.path / name).exists()] + (["checkpoints"] if kept else [])

    def _is_of_this_launch(self) -> bool:
        """Whether the launcher that started this process has started the folder's run, too, and now restarts it."""
        try:
            noted = parse_json((self.path / LAUNCH).read_text())
        except (OSError, ValueError):
            return False
        agents = noted.get("agents") if isinstance(noted, dict) else None
        if isinstance(agents, list) and any(agent in agents for agent in self._agents):
            return True
        return _slurm_job() is not None and noted.get("slurm") == _slurm_job() and _slurm_restarts() > 0

    def _bring_back(self) -> None:
        """Give a checkpoint its name again, of which a process ended while it replaced it."""
        for left in self.checkpoints.glob(f".step_*{REPLACED}"):
            name = left.name.removeprefix(".").removesuffix(REPLACED)
            if not (self.checkpoints / name).exists():
                left.rename(self.checkpoints / name)

    def _make(self, token: Path, chosen: Path | None, step: int) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.lock.take() and self._look() != self._start:  # there was no folder to lock at the first look
                raise ValueError(f"another run has used {self.path} while this one was prepared; start it again")
            _remove(token)
            os.close(os.open(token, os.O_CREAT | os.O_EXCL, 0o666))
            for left in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".step_*")):
                _remove(left)  # of a process that was killed while it wrote
            if chosen is not None and self._start.are_own:
                self._set_aside(chosen, step)
            else:
                for name in (*MODELS, "checkpoints", *OTHERS):
                    _remove(self.path / name)
            write_json(self.path / LAUNCH, {"agents": self._agents, "slurm": _slurm_job()})
        except OSError as problem:
            raise OSError(
                f"cannot write the output folder {self.path} ({problem}): choose another with output=FOLDER"
            ) from None

    def _set_aside(self, chosen: Path, step: int) -> None:
        """Rename the checkpoints after ``step``; one that was set aside before and is gone on from gets its name."""
        for later in list_checkpoints(self.checkpoints):
            if step_of(later) > step or (step_of(later) == step and step_of(chosen) < 0):
                target = later.with_name(ASIDE + later.name)
                number = 1
                while target.exists():
                    number += 1
                    target = later.with_name(f"{ASIDE}{later.name}_{number}")
                later.rename(target)
                log.warning(
                    "%s is newer than the checkpoint gone on from: it is kept as %s until you remove it",
                    later,
                    target,
                )
        if step_of(chosen) < 0:
            chosen.rename(chosen.with_name(f"step_{step}"))


def _agents() -> list[dict[str, Any]]:
    """Torchrun's own processes, one of a host; they live on while they start ranks again. Collective: an object."""
    mine = asdict(process_of(os.getppid())) if "TORCHELASTIC_RUN_ID" in os.environ else None
    found: list[dict[str, Any]] = []
    for agent in all_gather_objects(mine):
        if agent is not None and agent not in found:
            found.append(agent)
    return found


def _slurm_job() -> str | None:
    job = os.environ.get("SLURM_JOB_ID")
    return None if job is None else f"{job}.{os.environ.get('SLURM_STEP_ID', '')}"


def _slurm_restarts() -> int:
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(count) if count.isdigit() else 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
