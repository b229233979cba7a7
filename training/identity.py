"""What a checkpoint was trained on and with, so that it is not gone on with as something else."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.data import RunData
from utils.log import log, warn_once
from utils.settings import Config
from utils.text import parse_json

_NAMED = 5  # people in a message
_NEW_EACH_TIME = ("resume", "overwrite", "output")  # settings that are no change of a run
_TOLD_BY_OTHERS = ("fp16", "bf16", "num_classes", "num_image")  # what precision and the data have made of them
_OLD_POWER = 2.0  # of the schedule, where lr_power was left open, of runs whose checkpoints do not note it


class Identity:
    """Network, loss, and the people: how many, with how many images each, in which order.

    Args:
        cfg: the run's settings.
        data: opened by :func:`~training.data.open_data`.
    """

    def __init__(self, cfg: Config, data: RunData) -> None:
        assert data.summary is not None
        self._names = _names_of(data.class_list())
        self._leaves_power_open = cfg.lr_power is None
        self.facts: dict[str, Any] = {  # what a checkpoint notes
            "network": cfg.network,
            "loss": cfg.loss if cfg.margin_list is None else "combined",
            "lr_schedule": cfg.lr_schedule,
            "lr_power": cfg.schedule_power(),
            "precision": cfg.precision,
            "people": data.summary.num_classes,
            "images": data.summary.num_image,
            "images_of_people": data.summary.images_of_people,
            "labels": data.summary.checksum,
            "names": _sum_of(self._names),
            "settings": {name: value for name, value in cfg.as_dict().items() if name not in _NEW_EACH_TIME},
        }

    def check(self, checkpoint: Path, saved: dict[str, Any]) -> None:
        """Hold a checkpoint's identity against this run's; differences that may be are logged.

        Args:
            checkpoint: a folder step_N; the classes.json of its run names the people.
            saved: from it; {} in those of version 0.1.0.

        Raises:
            ValueError: another network, loss, or other people.
        """
        own = self.facts
        for name in ("network", "loss"):
            if saved.get(name, own[name]) != own[name]:
                raise ValueError(
                    f"{checkpoint} was trained with {name} {saved[name]!r}, this run has {own[name]!r}: set {name} "
                    f"back, or start a new run with resume=False output=NEW{_from_model(checkpoint, name)}"
                )
        self._check_schedule(checkpoint, saved)
        self._check_precision(checkpoint, saved.get("precision"))
        self._name_changes(checkpoint, saved.get("settings", {}))
        way_out = (
            "resume with the data that it was trained on, or start a new run that takes over what fits: resume=False "
            f"output=NEW{_from_model(checkpoint)} init_centres={checkpoint}"
        )
        is_noted = saved.get("names") is not None and own["names"] is not None
        have_same_names = is_noted and saved["names"] == own["names"]
        moved = "" if have_same_names else self._moved(checkpoint)
        if is_noted and not have_same_names and not moved:
            moved = "other names, or another order"
        if moved:
            raise ValueError(f"the people differ from those that {checkpoint} was trained on: {moved}; {way_out}")
        if saved.get("labels", own["labels"]) == own["labels"]:
            return
        before, now = (f"{one['people']} people with {one['images']} images" for one in (saved, own))
        if not have_same_names and saved["images_of_people"] != own["images_of_people"]:
            raise ValueError(
                f"the data differ from those that {checkpoint} was trained on: {before} then, {now} now, and not as "
                f"many for each person; {way_out}"
            )
        warn_once(
            "data: the same people, other images or another order than before (%s then, %s now): the epoch goes on "
            "at about its place",
            before,
            now,
        )

    def _check_schedule(self, checkpoint: Path, saved: dict[str, Any]) -> None:
        """Warn where the rate falls in another way than before; it may, as a rate may."""
        before, now = saved.get("lr_schedule", "poly"), self.facts["lr_schedule"]
        if before != now:
            text = "the learning rate of %s followed lr_schedule = %r, that of this run follows %r: "
            warn_once(text + "lr_schedule=%s goes on as before", checkpoint, before, now, before)
        elif now == "poly":
            self._check_power(checkpoint, saved.get("lr_power"))

    def _check_power(self, checkpoint: Path, noted: float | None) -> None:
        own = self.facts["lr_power"]
        if noted is not None and noted != own:
            text = "the learning rate of %s fell with power %g, that of this run falls with power %g: "
            warn_once(text + "lr_power=%g goes on as before", checkpoint, noted, own, noted)
        elif noted is None and self._leaves_power_open and own != _OLD_POWER:
            text = (
                "%s does not note how its learning rate fell: older versions had power %g where lr_power was left "
                "open; that of this run falls with power %g. lr_power=%g goes on as they did"
            )
            warn_once(text, checkpoint, _OLD_POWER, own, _OLD_POWER)

    def _check_precision(self, checkpoint: Path, noted: str | None) -> None:
        """Warn where the network's number format is another than before; it may be."""
        now = self.facts["precision"]
        if noted is not None and noted != now:
            text = "precision: %s was trained in %s, this run goes on in %s; precision=%s goes on as before"
            warn_once(text, checkpoint, noted, now, noted)
        elif noted is None and now == "bf16":
            text = "precision: %s does not note its own, which was float32 in older versions unless fp16 or bf16 was "
            warn_once(text + "set; this run goes on in bf16", checkpoint)

    def _name_changes(self, checkpoint: Path, before: dict[str, Any]) -> None:
        """Log which settings are others than before, but for those that have a warning of their own."""
        now = self.facts["settings"]
        changes = [
            f"{name} {before[name]!r}, now {value!r}"
            for name, value in now.items()
            if name in before and before[name] != value and name not in (*self.facts, *_TOLD_BY_OTHERS)
        ]
        if changes:
            log.info("settings that differ from those of %s: %s", checkpoint, "; ".join(changes))

    def _moved(self, checkpoint: Path) -> str:
        """Who has another class number than before; "" if nobody has, or if the run's classes.json does not tell."""
        try:
            content = (checkpoint.resolve().parent.parent / "classes.json").read_text(encoding="utf-8")
            before = _names_of(parse_json(content))
        except (OSError, ValueError):
            return ""
        now = self._names
        if before is None or now is None or before == now:
            return ""
        known, places = set(before), {name: number for number, name in enumerate(now)}
        kinds = {
            "no longer there": [name for name in before if name not in places],
            "new": [name for name in now if name not in known],
            "with another class number": [
                f"{n} (class {i}, now {places[n]})" for i, n in enumerate(before) if places.get(n, i) != i
            ],
        }
        return "; ".join(
            f"{len(found)} {kind}: {', '.join(map(str, found[:_NAMED]))}{', ...' if len(found) > _NAMED else ''}"
            for kind, found in kinds.items()
            if found
        )


def _names_of(classes: Any) -> list[Any] | None:
    """The people's names in order, from what classes.json holds.

    Of several sets, the set's number takes the place of its name: its folder may move.
    """
    if not isinstance(classes, dict):
        return classes if isinstance(classes, list) else None
    names, sets = classes.get("names"), classes.get("sets")
    if not isinstance(names, list) or not isinstance(sets, list):
        return None
    numbers: dict[Any, int] = {}
    for number, one in enumerate(sets):
        numbers.setdefault(one.get("name") if isinstance(one, dict) else None, number)
    return [_numbered(name, numbers) if isinstance(name, str) else name for name in names]


def _numbered(name: str, numbers: dict[Any, int]) -> str:
    set_name, _, person = name.partition("/")
    return f"{numbers.get(set_name, set_name)}/{person}"


def _from_model(checkpoint: Path, differs: str = "") -> str:
    """How to start a new run from the network, where that is the same."""
    return "" if differs == "network" else f" init_backbone={checkpoint.parent.parent / 'model.pt'}"


def _sum_of(names: Sequence[Any] | None) -> int | None:
    return None if names is None else zlib.crc32("\n".join(map(str, names)).encode(errors="surrogateescape"))
