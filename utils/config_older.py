"""Settings that older files of insightface's arcface_torch have under names that are no longer in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BATCH_OF_LR = 512  # by which its train.py divided lr, before it multiplied by the total batch


def in_todays_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a file and the command line give, with ``decay_epoch`` in today's names; these go before it.

    ``config.decay_epoch = [8, 14]`` meant a rate that is a tenth after 8 epochs and a hundredth after 14, and the
    ``train.py`` that read it took ``lr`` as that of a total batch of 512.
    """
    values = dict(given)
    if "decay_epoch" not in values:
        return values
    steps = values.pop("decay_epoch")
    return {"lr_schedule": "step", "lr_steps": steps, "lr_gamma": 0.1, "lr_batch": _BATCH_OF_LR, **values}
