"""Settings that older files of insightface's arcface_torch have under names that are no longer in use."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from utils.typed_values import typed

_BATCH_OF_LR = 512  # by which its train.py divided lr, before it multiplied by the total batch


def in_todays_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a file and the command line give, with ``decay_epoch`` in today's names; these go before it.

    ``config.decay_epoch = [8, 14]`` meant a rate that is a tenth after 8 epochs and a hundredth after 14, and the
    ``train.py`` that read it took ``lr`` as that of a total batch of 512.

    Raises:
        ValueError: ``decay_epoch`` is no list of rising epochs; or ``lr_func``, the rate as a function in files that
            are older still.
    """
    values = dict(given)
    if "lr_func" in values:
        raise ValueError(
            "lr_func, in insightface's oldest files the function that gave an epoch's factor on lr, is not read: put "
            "lr_schedule = 'step' and lr_steps, the epochs after which the rate falls, in its place (its m - 1 <= "
            f"epoch for m in [20, 28] is lr_steps = [19, 27]), and lr_batch = {_BATCH_OF_LR}, the batch of its lr"
        )
    if "decay_epoch" not in values:
        return values
    steps = _epochs(values.pop("decay_epoch"))
    return {"lr_schedule": "step", "lr_steps": steps, "lr_gamma": 0.1, "lr_batch": _BATCH_OF_LR, **values}


def _epochs(steps: Any) -> tuple[float, ...]:
    try:
        epochs: tuple[float, ...] = typed("decay_epoch", steps, tuple[float, ...])
        if all(a < b for a, b in itertools.pairwise((0.0, *epochs))):
            return epochs
    except ValueError:
        pass  # of another type
    raise ValueError(
        f"decay_epoch must be a list of rising epochs above 0, such as [8, 14], got {steps!r}: for another schedule "
        "leave it as it was and set lr_schedule, which goes before it"
    )
