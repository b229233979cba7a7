"""What a checkpoint was trained on and with, so that it is not gone on with as something else."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from training.data import RunData
from utils.config import Config
from utils.log import log
from utils.text import parse_json

_NAMED = 5  # people in a message


def identity_of(cfg: Config, data: RunData) -> dict[str, Any]:
    """Network, loss, and the people: how many, with how many images each, in which order."""
    assert data.summary is not None
    names = _names_of(data.class_list())
    return {
        "network": cfg.network,
        "loss": _loss_of(cfg),
        "people": data.summary.num_classes,
        "images": data.summary.num_image,
        "images_of_people": data.summary.images_of_people,
        "labels": data.summary.checksum,
        "names": None if names is None else zlib.crc32("\n".join(map(str, names)).encode(errors="surrogateescape")),
    }


def check_identity(checkpoint: Path, saved: dict[str, Any], cfg: Config, data: RunData) -> None:
    """Hold a checkpoint's identity against this run's; differences that may be are logged.

    Args:
        checkpoint: a folder step_N; the classes.json of its run names the people.
        saved: from it; {} in older checkpoints.
        cfg: this run's settings.
        data: what this run trains on.

    Raises:
        ValueError: another network, loss, or other people.
    """
    own = identity_of(cfg, data)
    for name, what in (("network", "network"), ("loss", "loss")):
        if saved.get(name, own[name]) != own[name]:
            raise ValueError(
                f"{checkpoint} was trained with {what} {saved[name]!r}, this run has {own[name]!r}: set {name} "
                "back, or start a new run from its model.pt with init_backbone"
            )
    moved = _moved_people(checkpoint, data)
    way_out = (
        "resume with the data that it was trained on, or start a new run that takes over what fits: "
        f"init_backbone=RUN/model.pt init_centres={checkpoint}"
    )
    if moved:
        raise ValueError(f"the people differ from those that {checkpoint} was trained on: {moved}; {way_out}")
    have_names = saved.get("names") is not None and own["names"] is not None
    if have_names and saved["names"] != own["names"]:
        raise ValueError(f"the people's names or their order differ from those of {checkpoint}; {way_out}")
    if saved.get("labels", own["labels"]) == own["labels"]:
        return
    before, now = (f"{one['people']} people with {one['images']} images" for one in (saved, own))
    if not have_names and saved["images_of_people"] != own["images_of_people"]:
        raise ValueError(
            f"the data differ from those that {checkpoint} was trained on: {before} then, {now} now, and not as many "
            f"for each person; {way_out}"
        )
    log.warning(
        "data: the same people, other images or another order than before (%s then, %s now): the epoch goes on at "
        "about its place",
        before,
        now,
    )


def _loss_of(cfg: Config) -> str:
    return cfg.loss if cfg.margin_list is None else "combined"


def _names_of(classes: Any) -> list[Any] | None:
    """The names in order, from what classes.json holds."""
    names = classes.get("names") if isinstance(classes, dict) else classes
    return names if isinstance(names, list) else None


def _moved_people(checkpoint: Path, data: RunData) -> str:
    """Who has another class number than before, "" if nobody has or no names are known."""
    try:
        before = _names_of(parse_json((checkpoint.resolve().parent.parent / "classes.json").read_text()))
    except (OSError, ValueError):
        return ""
    now = _names_of(data.class_list())
    if before is None or now is None or before == now:
        return ""
    places = {name: number for number, name in enumerate(now)}
    gone = [name for name in before if name not in places]
    new = [name for name in now if name not in set(before)]
    moved = [f"{n} (class {i}, now {places[n]})" for i, n in enumerate(before) if places.get(n, i) != i]
    kinds = {"no longer there": gone, "new": new, "with another class number": moved}
    return "; ".join(
        f"{len(found)} {kind}: {', '.join(map(str, found[:_NAMED]))}{', ...' if len(found) > _NAMED else ''}"
        for kind, found in kinds.items()
        if found
    )
