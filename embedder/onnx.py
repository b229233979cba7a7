"""Recognition networks in ONNX: this project's exports, and those of insightface's model packs.

Shapes: B batch, H height, W width, D embedding size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedder.embedder import Embedder
from embedder.onnx_files import external_files

_FIRST_NODES = 8  # where a graph that normalises its own input does so


class OnnxEmbedder(Embedder):
    """A recognition network run by onnxruntime.

    Its input is RGB, ``(x - mean) / std`` with mean and std both 127.5, unless the file's metadata name others
    (``input_mean``, ``input_std``), or the graph starts with a Sub and a Mul of its own: then pixels go in raw.
    That is how insightface's ``ArcFaceONNX`` decides. A graph of fixed batch size gets batches of that size.

    Args:
        path: the file.
        sha256: its hash.
        device: the CPU, or a GPU for which the runtime must be built.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a package is missing, or this is no ONNX model with one image input and one (B, D) output.
    """

    def __init__(self, path: Path, sha256: str, device: torch.device) -> None:
        self._session = _open_session(path, device)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise ValueError(
                f"{path}: expected a recognition network of one input and one output, found {len(inputs)} and "
                f"{len(outputs)}; detection and landmark models cannot be evaluated here"
            )
        shape = list(inputs[0].shape)
        sides = shape[2:] if len(shape) == 4 else []
        if len(shape) != 4 or shape[1] != 3 or any(isinstance(x, int) and x != sides[0] for x in sides):
            raise ValueError(f"{path}: expected an input of shape (batch, 3, side, side), found {shape}")
        if inputs[0].type != "tensor(float)":
            raise ValueError(f"{path}: expected a float32 input, found {inputs[0].type}")
        self._path, self._input, self._output = path, inputs[0].name, outputs[0].name
        self._fixed_batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
        self.name, self.sha256 = path.name, sha256
        self.image_size = sides[0] if isinstance(sides[0], int) else 112
        self.mean, self.std = _normalisation(path, self._session.get_modelmeta().custom_metadata_map)
        probe = self.embed(np.zeros((1, self.image_size, self.image_size, 3), np.uint8))
        self.embedding_size = probe.shape[1]

    def embed(self, images_BHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed aligned RGB images (B, H, W, 3); (B, D), not normalised."""
        x = (images_BHW3.transpose(0, 3, 1, 2).astype(np.float32) - self.mean) / self.std
        if self._fixed_batch is None:
            return self._run(x)
        size, n = self._fixed_batch, len(x)
        padding = np.zeros((-n % size, *x.shape[1:]), np.float32)
        x = np.concatenate([x, padding])
        return np.concatenate([self._run(x[start : start + size]) for start in range(0, len(x), size)])[:n]

    def _run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        (out,) = self._session.run([self._output], {self._input: np.ascontiguousarray(x)})
        if out.ndim != 2 or len(out) != len(x):
            raise ValueError(f"{self._path}: expected an output of shape ({len(x)}, D), found {out.shape}")
        return np.asarray(out, np.float32)


def _open_session(path: Path, device: torch.device) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    external_files(path)  # older runtimes follow a path out of the model's folder
    try:
        import onnxruntime
    except ImportError:
        raise ValueError(
            f"{path} needs onnxruntime, which is not installed: pip install onnxruntime, or give a model.pt"
        ) from None
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise ValueError("this onnxruntime sees no GPU: pip install onnxruntime-gpu, or choose --device cpu")
        providers.insert(0, "CUDAExecutionProvider")
    try:
        return onnxruntime.InferenceSession(str(path), providers=providers)
    except Exception as error:  # the runtime has a class of its own for every kind of damage
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is no ONNX model that this onnxruntime can run ({reason[:200]})") from None


def _normalisation(path: Path, metadata: dict[str, str]) -> tuple[np.float32, np.float32]:
    """Mean and std of the network's input, on pixels of 0 to 255."""
    if "input_mean" in metadata and "input_std" in metadata:
        try:
            mean, std = float(metadata["input_mean"]), float(metadata["input_std"])
        except ValueError:
            mean, std = 0.0, 0.0
        if not (0 < std < math.inf and math.isfinite(mean)):
            raise ValueError(
                f"{path}: its metadata say input_mean {metadata['input_mean'][:40]!r} and input_std "
                f"{metadata['input_std'][:40]!r}, expected numbers"
            )
        return np.float32(mean), np.float32(std)
    names = _first_node_names(path)
    normalises = all(
        any(name.startswith(prefixes) for name in names) for prefixes in (("Sub", "_minus"), ("Mul", "_mul"))
    )
    return (np.float32(0), np.float32(1)) if normalises else (np.float32(127.5), np.float32(127.5))


def _first_node_names(path: Path) -> list[str]:
    try:
        import onnx
    except ImportError:
        raise ValueError(
            f"{path} has no input_mean and input_std in its metadata, and reading its graph needs onnx, which is not "
            "installed: pip install onnx, or give a model.pt"
        ) from None
    model = onnx.load(path, load_external_data=False)
    return [node.name for node in model.graph.node[:_FIRST_NODES]]
