"""Settings that look like keys are refused: config.json, the log and W&B show every setting."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_KEY_VARIABLE = "WANDB_API_KEY"
MASK = "***"  # stands for wandb_key wherever settings are shown: see Config.as_dict
_SHORTEST = 8  # characters of a key that is looked for in settings
_PASSWORD_IN_ADDRESS = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_WANDB_KEY = re.compile(r"(\w+-)?[0-9a-f]{40}")
_NEW_WANDB_KEY = re.compile(r"wandb_v\d+_\w{16,}")  # nothing else looks like it


def refuse_secrets(values: Mapping[str, Any]) -> None:
    """Raise ValueError where a setting holds a key or a password; the message names the setting, not its value.

    Args:
        values: the settings as they were given, of any type.
    """
    if (key := values.get("wandb_key")) and set(str(key)) not in ({"X"}, set(MASK)):
        raise ValueError(
            "wandb_key holds a key: secrets do not belong in a config file. Run `wandb login` or set the environment "
            f"variable {_KEY_VARIABLE} instead, and remove the line"
        )
    secret = os.environ.get(_KEY_VARIABLE, "")
    for name, value in values.items():
        text = str(value)
        if len(secret) >= _SHORTEST and secret in text:
            raise ValueError(
                f"{name} holds what the environment variable {_KEY_VARIABLE} holds: take the key out of it"
            )
        is_short = name in ("wandb_entity", "wandb_project", "suffix_run_name")  # elsewhere it may be a commit
        if (is_short and _WANDB_KEY.fullmatch(text)) or _NEW_WANDB_KEY.search(text):
            raise ValueError(f"{name} looks like a key of W&B: set the environment variable {_KEY_VARIABLE} instead")
        if _PASSWORD_IN_ADDRESS.search(text):
            raise ValueError(f"{name} holds an address with a password in it: take the password out")
