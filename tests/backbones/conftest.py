import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

CONTRACTS = Path(__file__).parents[1] / "contracts"


def _values(key, shape):
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif key.endswith("running_mean"):
        values = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        values = rng.uniform(0.5, 1.5, shape) if key.endswith("weight") else 0.1 * rng.standard_normal(shape)
    else:
        values = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    return values.astype(np.float32)


@pytest.fixture(scope="session")
def fill():
    """Give a model the weights that the contracts were recorded with, and put it in eval mode."""

    def fill_model(model):
        state = {key: torch.from_numpy(_values(key, tuple(old.shape))) for key, old in model.state_dict().items()}
        model.load_state_dict(state, strict=True)
        return model.eval()

    return fill_model


@pytest.fixture(scope="session")
def faces():
    """The input that the contracts were recorded with, (2, 3, 112, 112)."""
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 3, 112, 112)).astype(np.float32))


@pytest.fixture(scope="session")
def recorded_outputs():
    with np.load(CONTRACTS / "backbone_outputs.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


@pytest.fixture(scope="session")
def recorded_state_dicts():
    return json.loads((CONTRACTS / "backbone_state_dicts.json").read_text())


@pytest.fixture(scope="session")
def relative_error():
    """Largest difference over the largest expected value."""
    return lambda found, expected: ((found - expected).abs().max() / expected.abs().max()).item()
