"""Weights & Biases: whether it can be reached, told before a run starts, and a log that never ends one."""

from __future__ import annotations

import configparser
import hashlib
import importlib.util
import netrc
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from utils.log import log
from utils.settings import Config
from utils.text import plain

_HOSTS = ("https://api.wandb.ai", "https://api.forge.coreweave.com")  # W&B's own, of its versions
_WITHOUT_LOGIN = ("offline", "dryrun", "disabled")  # modes; dryrun is the old name of offline
_FINISH_S = 120.0  # that W&B has at the end to send what is left
_EARLY_S = 20.0  # likewise when the run is stopped or fails: a launcher kills soon


def check_wandb(cfg: Config) -> None:
    """Raise ValueError if Weights & Biases is asked for and cannot be: no package, or nobody has logged in.

    A login is looked for where W&B itself does: WANDB_API_KEY, what ``wandb login`` has left in the netrc file, and
    W&B's own settings files. The modes that need none are WANDB_MODE's, or those of ``wandb offline``.
    """
    if not cfg.using_wandb:
        return
    if importlib.util.find_spec("wandb") is None:
        raise ValueError("using_wandb = True needs the package: pip install wandb, or set using_wandb = False")
    settings = _settings()
    if os.environ.get("WANDB_MODE", settings.get("mode", "online")) in _WITHOUT_LOGIN:
        return
    host = os.environ.get("WANDB_BASE_URL") or settings.get("base_url")
    hosts = [host] if host else _HOSTS
    has_key = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    if not (has_key or settings.get("api_key") or any(map(_is_in_netrc, hosts))):
        raise ValueError(
            f"using_wandb = True, but nobody has logged in to {host or 'W&B'} here: run `wandb login`, set the "
            "environment variable WANDB_API_KEY, or keep the figures on this machine with WANDB_MODE=offline"
        )


def _settings() -> dict[str, str]:
    """What W&B's settings files say, the user's and over it that of the working directory."""
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    here = Path(os.environ.get("WANDB_DIR") or ".")
    parser = configparser.ConfigParser(default_section="none", interpolation=None)
    try:
        parser.read([user / "settings", here / "wandb" / "settings"])
    except (configparser.Error, UnicodeDecodeError) as error:
        log.warning("a settings file of Weights & Biases cannot be read: %s", error)
    return dict(parser["default"]) if parser.has_section("default") else {}


def _is_in_netrc(host: str) -> bool:
    """Whether the netrc file has a password for a host's address."""
    given = os.environ.get("NETRC")
    for path in [Path(given)] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            found = netrc.netrc(str(path.expanduser())).authenticators(urlsplit(host).netloc)
        except FileNotFoundError:
            continue
        except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
            log.warning("%s cannot be read: %s", path, error)
            continue
        if found is not None and found[2]:
            return True
    return False


class WandbLog:
    """A run of Weights & Biases. What fails there is a warning, once; metrics.jsonl has the same figures.

    Args:
        cfg: says where it goes and what it is called.
        output: the run's folder.
    """

    def __init__(self, cfg: Config, output: Path) -> None:
        self._run: Any = None
        self._or_warn("does not start", lambda: self._start(cfg, output))

    def _start(self, cfg: Config, output: Path) -> None:
        import wandb

        run_id = hashlib.sha1(os.fsencode(output)).hexdigest()[:16]  # so that a resumed run finds its old one
        self._run = wandb.init(
            entity=cfg.wandb_entity,
            project=cfg.wandb_project,
            name=cfg.name + (f"_{cfg.suffix_run_name}" if cfg.suffix_run_name else ""),
            notes=cfg.notes,
            id=run_id if cfg.wandb_resume else None,
            resume="allow" if cfg.wandb_resume else None,
            config=cfg.as_dict(),
            dir=str(output),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step."""
        self._or_warn("takes no more figures", lambda: self._run.log(dict(values), step=step))

    def finish(self, artifact: Path | None, succeeded: bool) -> None:
        """Upload a file, if there is one, and what has not been sent yet; given up after some time."""
        limit_s = _FINISH_S if succeeded else _EARLY_S

        def end() -> None:
            if artifact is not None:
                self._run.save(str(artifact))
            self._run.finish(exit_code=0 if succeeded else 1)

        thread = threading.Thread(target=lambda: self._or_warn("did not end well", end), daemon=True)
        if self._run is not None:
            thread.start()
            thread.join(limit_s)
        if thread.is_alive():
            log.warning("Weights & Biases has not taken all figures within %g s: `wandb sync` sends them", limit_s)

    def _or_warn(self, what: str, do: Callable[[], object]) -> None:
        """Call ``do``; after an error there is no W&B any more.

        Of what is no Exception, a KeyboardInterrupt of the main thread alone is the user's: it goes on.
        """
        if self._run is None and what != "does not start":
            return
        try:
            do()
        except BaseException as error:  # of whatever kind, SystemExit too: a logger ends no run
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            self._run = None
            text = plain(" ".join(str(error).split()))[:300]
            log.warning(
                "Weights & Biases %s (%s: %s); the run goes on without it, its figures are in metrics.jsonl",
                what,
                type(error).__name__,
                text,
            )
