"""One way to load a trained network, from a run's ``model.pt`` or from ONNX, and to embed aligned faces with it.

Shapes: B batch, H height, W width, D embedding size.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backbones import MODEL_NAMES, get_model
from backbones.base import FACE_SIZE, Backbone, to_network_input
from backbones.weights import WeightsFile, read_weights
from embedder.embedder import Embedder
from embedder.onnx_files import external_files
from utils.device import choose_device, to_device
from utils.distributed import get_rank
from utils.log import log
from utils.text import parse_json

DEFAULT_NETWORK = "r50"
COUNTER = ".num_batches_tracked"  # of a batch norm: older files lack it, and nothing here depends on it
SLOW_TO_BUILD = ("r2060",)  # seconds, without memory too; no other network has its tensors
_MOST_NUMBERS = 1 << 20  # of an embedding


class TorchEmbedder(Embedder):
    """A torch network in evaluation mode, channels-last.

    Args:
        backbone: (B, 3, H, W) float32 in [-1, 1] to (B, D); moved to ``device`` and put in eval mode.
        name: the network's name.
        embedding_size: D.
        sha256: hash of the weights' file.
        device: where to compute.
        bf16: run the products in bfloat16; embeddings then agree to about two digits.
        bgr: feed blue first.
        image_size: side in pixels of the images that it takes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        name: str,
        embedding_size: int,
        sha256: str,
        device: torch.device,
        bf16: bool = False,
        bgr: bool = False,
        image_size: int = FACE_SIZE,
    ) -> None:
        self.backbone = backbone.eval().to(device).to(memory_format=torch.channels_last)
        self.name, self.embedding_size, self.sha256 = name, embedding_size, sha256
        self.image_size = image_size
        self.device, self.color_order = device, "BGR" if bgr else "RGB"
        self.precision = "bfloat16" if bf16 else "float32"

    def embed(self, images_BHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed aligned RGB images (B, H, W, 3); (B, D), not normalised."""
        ordered_BHW3 = images_BHW3[..., ::-1] if self.color_order == "BGR" else images_BHW3
        pixels = to_device(torch.from_numpy(np.ascontiguousarray(ordered_BHW3)), self.device)
        x = to_network_input(pixels)  # (B, 3, H, W)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        with torch.inference_mode(), autocast:
            embedding_BD: Tensor = self.backbone(x)
        out: NDArray[np.float32] = embedding_BD.float().cpu().numpy()
        return out


def load_embedder(
    path: str | Path,
    network: str | None = None,
    device: str | torch.device = "cpu",
    bf16: bool = False,
    bgr: bool = False,
) -> Embedder:
    """Load a network that embeds.

    Args:
        path: ``model.pt`` or another state_dict, the run's folder that holds ``model.pt``, or an ``.onnx`` file.
        network: the network's name, for a state_dict; None takes it from ``config.json`` beside the weights,
            else from the weights themselves.
        device: where to compute. ONNX uses a GPU only if its runtime was built for one.
        bf16: run a torch network's products in bfloat16.
        bgr: feed the network blue first, as it was trained elsewhere; images are given as RGB all the same.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that holds no weights, weights of another network, an ONNX graph that takes or gives
            something else, or ONNX without its runtime.
    """
    path = Path(path)
    device = choose_device(device) if isinstance(device, str) else device
    if path.suffix.lower() == ".onnx":
        from embedder.onnx import OnnxEmbedder

        if network is not None:
            raise ValueError(f"{path} holds its own network; leave --network out")
        if bf16:
            raise ValueError(f"{path} fixes its own number format; leave --bf16 out")
        return OnnxEmbedder(path, _onnx_sha256(path), device, bgr)
    backbone, name, embedding_size = load_network(path, network)
    sha256 = file_sha256(_weights_file(path))
    return TorchEmbedder(backbone, name, embedding_size, sha256, device, bf16, bgr, backbone.input_shape[1])


def _onnx_sha256(path: Path) -> str:
    """The file's hash or, where weights lie in files beside it, that of all their hashes."""
    own = file_sha256(path)
    others = external_files(path)
    return hashlib.sha256("".join([own, *map(file_sha256, others)]).encode()).hexdigest() if others else own


def file_sha256(path: Path) -> str:
    """Hash a file's bytes; about 1 GiB a second.

    Raises:
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected a network, such as a run's model.pt or an .onnx file")
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
        return digest.hexdigest()


def load_network(path: str | Path, network: str | None = None) -> tuple[Backbone, str, int]:
    """Build a torch network and load its weights.

    Args:
        path: ``model.pt``, or the folder that holds it.
        network: the network's name; None takes it from ``config.json`` beside the weights, else the one that the
            weights fit. The embedding size comes from there too, else from the weights' last vector; so does the
            image size, else it is 112.

    Returns:
        the network on the CPU, its name, and its embedding size D.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that holds no weights, or weights of another network.
    """
    path = _weights_file(Path(path))
    file = read_weights(path)
    config_path = path.parent / "config.json"
    config = _read_run_config(config_path)
    name, chosen_by = _choose_network(network, config, config_path, file)
    weights = file.of(_shape_of_network(name, 1))
    embedding_size = config.get("embedding_size", _last_vector(name, weights.tensors))
    if (
        isinstance(embedding_size, bool)
        or not isinstance(embedding_size, int)
        or not 1 <= embedding_size <= _MOST_NUMBERS
    ):
        source = config_path if "embedding_size" in config else path
        raise ValueError(f"{source}: embedding_size is {embedding_size!r}, not a number of 1 to {_MOST_NUMBERS:,}")
    image_size = _side(config.get("image_size", FACE_SIZE), config_path)
    with torch.device("meta"):  # no memory for what a file says before it is known to be so
        wanted = get_model(name, num_features=embedding_size, image_size=image_size).state_dict()
    mismatch = _describe_mismatch(wanted, weights.tensors)
    if mismatch:
        fitting = fitting_networks(file)
        way_out = (
            f"They fit --network {' or '.join(fitting)}" if fitting else f"They fit none here: {file.first_names()}"
        )
        raise ValueError(
            f"{path} does not hold the weights of network {name!r} (chosen by {chosen_by}): {mismatch}. {way_out}"
        )
    if weights.left_out and get_rank() == 0:
        log.warning("%s: left out what else is in the file: %s", path, weights.left_out_text())
    backbone = get_model(name, num_features=embedding_size, image_size=image_size)
    assert isinstance(backbone, Backbone)
    backbone.load_state_dict(weights.tensors)
    return backbone, name, embedding_size


def _weights_file(path: Path) -> Path:
    return path / "model.pt" if path.is_dir() else path


def _choose_network(
    network: str | None, config: dict[str, Any], config_path: Path, file: WeightsFile
) -> tuple[str, str]:
    """The network's name, and where it comes from."""
    if network is not None:
        return network, "--network"
    if "network" in config:
        if not isinstance(config["network"], str):
            raise ValueError(f"{config_path}: network is {config['network']!r}, expected a name; give --network")
        return config["network"], str(config_path)
    fitting = fitting_networks(file)
    if fitting and DEFAULT_NETWORK not in fitting:
        return fitting[0], "the weights"
    return DEFAULT_NETWORK, "the default"


def _read_run_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = parse_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); mend it, or move it away and give --network") from None
    return config if isinstance(config, dict) else {}


def _side(size: Any, config_path: Path) -> int:
    """The side of a square image, from ``image_size`` of a config: a number, or height and width."""
    sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
    if sides[0] != sides[1] or isinstance(sides[0], bool) or not isinstance(sides[0], int):
        raise ValueError(f"{config_path}: image_size is {size!r}, expected [side, side] of square images in pixels")
    return sides[0]


def _describe_mismatch(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """Say how weights differ from what a network wants, "" where they fit."""
    missing = [key for key in wanted if key not in found and not key.endswith(COUNTER)]
    extra = [key for key in found if key not in wanted]
    shapes = [
        f"{key} ({tuple(found[key].shape)} instead of {tuple(wanted[key].shape)})"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    parts = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (
            ("tensors are missing", missing),
            ("are not the network's", extra),
            ("have another shape", shapes),
        )
        if names
    ]
    return "; ".join(parts)


def fitting_networks(file: WeightsFile, headless: bool = False) -> list[str]:
    """Names of the networks that these weights load into; nothing is allocated.

    Args:
        file: the weights.
        headless: where they have nothing of a network's last parts, these are not asked for.
    """
    quick = [name for name in MODEL_NAMES if name not in SLOW_TO_BUILD and _fits(file, name, headless)]
    return quick or [name for name in SLOW_TO_BUILD if _fits(file, name, headless)]


def _fits(file: WeightsFile, name: str, headless: bool) -> bool:
    tensors = file.match(_shape_of_network(name, 1)).tensors
    wanted = _shape_of_network(name, _last_vector(name, tensors))
    kept = without_head(wanted, tensors) if headless else wanted
    return 2 * len(kept) > len(wanted) and not _describe_mismatch(kept, tensors)


def without_head(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors, without its last parts as far as the weights that were found have nothing of them."""
    part_of = {name: name.partition(".")[0] for name in wanted}
    parts, present = list(dict.fromkeys(part_of.values())), {name.partition(".")[0] for name in found}
    while parts and parts[-1] not in present:
        parts.pop()
    return {name: value for name, value in wanted.items() if part_of[name] in parts}


def _last_vector(name: str, tensors: dict[str, Tensor]) -> int:
    """The embedding size that a network's weights speak of: the length of the last vector among its names."""
    lengths = [len(tensors[key]) for key in _shape_of_network(name, 1) if key in tensors and tensors[key].ndim == 1]
    return lengths[-1] if lengths else 512


@cache
def _shape_of_network(name: str, embedding_size: int) -> dict[str, Tensor]:
    """A network's tensors without their memory."""
    with torch.device("meta"):
        return get_model(name, num_features=embedding_size).state_dict()
