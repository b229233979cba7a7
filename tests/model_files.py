"""Files of weights for tests: random, but with batch norms that are not the identity, as those of trained ones."""

from pathlib import Path

import numpy as np
import torch

from backbones import get_model


def save_random_model(folder: Path, name: str, embedding_size: int = 64, seed: int = 0) -> Path:
    """Write ``folder/model.pt`` of a network with moderate outputs."""
    torch.manual_seed(seed)
    network = get_model(name, num_features=embedding_size)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if key.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.ndim > 1:
                value.normal_(0, float(np.prod(value.shape[1:])) ** -0.5)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / "model.pt")
    return folder / "model.pt"


def load_model(path: Path, name: str, embedding_size: int = 64) -> torch.nn.Module:
    """The network of such a file, in eval mode."""
    network = get_model(name, num_features=embedding_size).eval()
    network.load_state_dict(torch.load(path))
    return network
