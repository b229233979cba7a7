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
from embedder.onnx_files import runtime_source

_OTHERS = "detection and landmark models cannot be evaluated here"
_FIRST_NODES = 8  # where a graph that normalises its own input does so


class OnnxEmbedder(Embedder):
    """A recognition network run by onnxruntime.

    Its input is ``(x - mean) / std`` with mean and std both 127.5, unless the file's metadata name others
    (``input_mean``, ``input_std``), or the graph starts with a Sub and a Mul of its own: then pixels go in raw.
    That is how insightface's ``ArcFaceONNX`` decides. Channels come as RGB, unless ``bgr`` or the metadata
    (``color_order``) say BGR; images as (B, 3, H, W), or (B, H, W, 3) where the graph says so. A graph of fixed batch
    size gets batches of that size. Of two outputs, such as an embedding and its length, the one of more than one
    column is taken.

    Args:
        path: the file.
        sha256: its hash.
        device: the CPU, or a GPU for which the runtime must be built.
        bgr: feed blue first, whatever the metadata say.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a package is missing, or this is no ONNX model with one image input and one (B, D) output.
    """

    def __init__(self, path: Path, sha256: str, device: torch.device, bgr: bool = False) -> None:
        self._session = _open_session(path, device)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1:
            raise ValueError(f"{path}: expected a recognition network of one input, found {len(inputs)}; {_OTHERS}")
        shape = list(inputs[0].shape)
        self._channels_last = len(shape) == 4 and shape[1] != 3 and shape[3] == 3
        sides = [] if len(shape) != 4 else shape[1:3] if self._channels_last else shape[2:]
        if not sides or 3 not in (shape[1], shape[3]) or any(isinstance(x, int) and x != sides[0] for x in sides):
            raise ValueError(
                f"{path}: expected an input of shape (batch, 3, side, side) or (batch, side, side, 3), found {shape}"
            )
        if inputs[0].type != "tensor(float)":
            raise ValueError(f"{path}: expected a float32 input, found {inputs[0].type}")
        self._path, self._input = path, inputs[0].name
        self._outputs = [output.name for output in outputs]
        self._fixed_batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
        self.name, self.sha256 = path.name, sha256
        self.image_size = sides[0] if isinstance(sides[0], int) else 112
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.weights_sha256 = metadata.get("weights_sha256", "")
        self.mean, self.std = _normalisation(path, metadata)
        self.color_order = "BGR" if bgr else _color_order(path, metadata)
        self.embedding_size = self._choose_output()

    def embed(self, images_BHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed aligned RGB images (B, H, W, 3); (B, D), not normalised."""
        ordered_BHW3 = images_BHW3[..., ::-1] if self.color_order == "BGR" else images_BHW3
        x = (ordered_BHW3.astype(np.float32) - self.mean) / self.std
        x = x if self._channels_last else x.transpose(0, 3, 1, 2)
        if self._fixed_batch is None:
            return self._run(x)
        size, n = self._fixed_batch, len(x)
        padding = np.zeros((-n % size, *x.shape[1:]), np.float32)
        x = np.concatenate([x, padding])
        return np.concatenate([self._run(x[start : start + size]) for start in range(0, len(x), size)])[:n]

    def _run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        (out,) = self._run_all(x)
        if out.ndim != 2 or len(out) != len(x):
            raise ValueError(f"{self._path}: expected an output of shape ({len(x)}, D), found {out.shape}")
        return np.asarray(out, np.float32)

    def _run_all(self, x: NDArray[np.float32], options: Any = None) -> list[NDArray[Any]]:
        try:
            return list(self._session.run(self._outputs, {self._input: np.ascontiguousarray(x)}, options))
        except Exception as error:  # the runtime's own classes
            raise ValueError(f"{self._path}: onnxruntime cannot run it on {x.shape}: {_first_line(error)}") from None

    def _choose_output(self) -> int:
        """Keep the output that embeds, known by what the graph gives for images; its width D.

        A graph that announces any batch but has its size built in, by a reshape, is fed one image at a time.
        """
        batch = self._fixed_batch or 2
        side = self.image_size
        shape = (batch, side, side, 3) if self._channels_last else (batch, 3, side, side)
        try:
            given = self._run_all(np.zeros(shape, np.float32), _quiet_options())
            whole = all(len(out) == batch for out in given if out.ndim)
        except ValueError:
            whole = False
        if not whole and self._fixed_batch is None:
            self._fixed_batch = batch = 1
            given = self._run_all(np.zeros((1, *shape[1:]), np.float32))
        shapes = [tuple(out.shape) for out in given]
        wide = [k for k, found in enumerate(shapes) if len(found) == 2 and found[0] == batch and found[1] > 1]
        others = [found for k, found in enumerate(shapes) if k not in wide and found not in ((batch, 1), (batch,))]
        if len(wide) != 1 or others:
            raise ValueError(
                f"{self._path}: expected one output of shape ({batch}, D) for {batch} images, and at most its length "
                f"beside it, found {', '.join(map(str, shapes))}; {_OTHERS}"
            )
        self._outputs = [self._outputs[wide[0]]]
        return int(shapes[wide[0]][1])


def _open_session(path: Path, device: torch.device) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    source = runtime_source(path)  # older runtimes follow a path out of the model's folder: it is checked
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
        return onnxruntime.InferenceSession(source, providers=providers)
    except Exception as error:  # the runtime has a class of its own for every kind of damage
        raise ValueError(f"{path} is no ONNX model that this onnxruntime can run ({_first_line(error)})") from None


def _quiet_options() -> Any:
    """For a run that may fail: the runtime does not print why."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _color_order(path: Path, metadata: dict[str, str]) -> str:
    """RGB, or BGR where the metadata say so."""
    order = metadata.get("color_order", "RGB").upper()
    if order not in ("RGB", "BGR"):
        raise ValueError(f"{path}: its metadata say color_order {order[:40]!r}, expected RGB or BGR")
    return order


def _normalisation(path: Path, metadata: dict[str, str]) -> tuple[np.float32, np.float32]:
    """Mean and std of the network's input, on pixels of 0 to 255."""
    given = [name for name in ("input_mean", "input_std") if name in metadata]
    if len(given) == 1:
        raise ValueError(
            f"{path}: its metadata give {given[0]} alone: write input_mean and input_std, of (x - mean) / std on "
            "pixels of 0 to 255, or neither"
        )
    if given:
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
