"""Export a trained network to ONNX: ``python torch2onnx.py work_dirs/run/model.pt``.

The graph takes (batch, 3, 112, 112) float32, or the size that a ViT was trained with, RGB,
``(x / 255 - 0.5) / 0.5``, any batch size, and gives (batch, D) embeddings, not normalised. Its metadata say so.
Before the file gets its name, onnxruntime runs it and the outputs are compared with torch's.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("torch2onnx.py")

import argparse
import contextlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from backbones.base import FACE_SIZE, Backbone
from embedder.load import file_sha256, load_network
from embedder.onnx_files import runtime_source
from utils.atomic import temporary_name
from utils.text import any_name_can_be_printed, complain

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
DEFAULT_OPSET = 18
TOLERANCE = 1e-4  # of the largest difference, relative to the largest output
CHECKED_BATCHES = (1, 5)
INPUT_NAME, OUTPUT_NAME = "input", "embedding"
# insightface's ArcFaceONNX takes a graph whose first nodes carry such names for one that scales its own input.
_MISTAKEN_NAMES = ("Sub", "_minus", "Mul", "_mul")


class _Float32(nn.Module):
    """A backbone without its input check and its autocast regions, which a graph has no use for."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone.project(self.backbone.trunk(x))


def import_packages() -> None:
    """Raise ValueError, naming what to install, if a package that exporting needs is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"exporting needs {', '.join(missing)}: pip install {' '.join(missing)}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's remarks about itself from the user; an error is still raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def export(backbone: nn.Module, path: Path, opset: int = DEFAULT_OPSET) -> None:
    """Write a network's graph with its weights in one file, batch size left open.

    Args:
        backbone: float32, on the CPU; put in evaluation mode.
        path: the file to write.
        opset: version of ONNX's operators.

    Raises:
        ValueError: the exporter cannot do it.
        OSError: the file cannot be written.
    """
    assert isinstance(backbone, Backbone)
    example = torch.zeros((2, *backbone.input_shape))  # of one image, the exporter would fix the batch size
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                _Float32(backbone.eval()),
                (example,),
                path,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                opset_version=opset,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except OSError:
        raise
    except Exception as error:  # the exporter's own classes, and those of what it calls
        raise ValueError(f"torch could not export the network with opset {opset}: {_first_line(error)}") from error


def describe(path: Path, metadata: Mapping[str, str], opset: int = DEFAULT_OPSET) -> None:
    """Write metadata into an ONNX file, keep its first nodes from being misread, and check its form.

    Raises:
        ValueError: it is not valid ONNX, or of another version than ``opset``.
    """
    import onnx

    model = onnx.load(str(path))
    found = [entry.version for entry in model.opset_import if not entry.domain]
    if found != [opset]:  # where its conversion fails, the exporter keeps the version that it works in
        raise ValueError(f"torch could not export the network with opset {opset}, only {found[0]}; leave --opset out")
    for node in model.graph.node:
        if node.name.startswith(_MISTAKEN_NAMES):
            node.name = f"net_{node.name}"
    onnx.helper.set_model_props(model, dict(metadata))
    model.producer_name = "mhs-arcface"
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"the exported graph is not valid ONNX: {_first_line(error)}") from error
    onnx.save(model, str(path))


def compare(path: Path, backbone: Backbone, batches: Sequence[int] = CHECKED_BATCHES) -> float:
    """Compare the file in onnxruntime with torch, on random images.

    Returns:
        the largest difference over all batch sizes, relative to torch's largest output; nan or infinity if either
        gives such numbers.

    Raises:
        ValueError: onnxruntime cannot run it, or gives another shape.
    """
    import onnxruntime

    worst = 0.0
    try:
        session = onnxruntime.InferenceSession(runtime_source(path), providers=["CPUExecutionProvider"])
        for batch in batches:
            x = np.random.default_rng(batch).uniform(-1, 1, (batch, *backbone.input_shape)).astype(np.float32)
            (found,) = session.run([OUTPUT_NAME], {INPUT_NAME: x})
            with torch.inference_mode():
                expected = backbone.eval()(torch.from_numpy(x)).numpy()
            if found.shape != expected.shape:
                raise ValueError(
                    f"onnxruntime gives shape {found.shape} for a batch of {batch}, torch {expected.shape}"
                )
            difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-30))
            worst = difference if np.isnan(difference) else max(worst, difference)
    except ValueError:
        raise
    except Exception as error:  # the runtime's own classes
        raise ValueError(f"onnxruntime cannot run the exported file: {_first_line(error)}") from error
    return worst


def metadata_of(network: str, embedding_size: int, sha256: str, image_size: int = FACE_SIZE) -> dict[str, str]:
    """What a user of the file has to know, as ONNX metadata."""
    return {
        "network": network,
        "embedding_size": str(embedding_size),
        "input_size": f"{image_size}x{image_size}",
        "input_mean": "127.5",  # on pixels of 0 to 255: (x - mean) / std, the same for each channel
        "input_std": "127.5",
        "color_order": "RGB",
        "preprocessing": "(x / 255 - 0.5) / 0.5",
        "alignment": f"arcface {image_size}x{image_size}, five landmarks",
        "normalized": "false",
        "weights_sha256": sha256,
    }


def convert(
    model: Path, output: Path | None = None, network: str | None = None, opset: int = DEFAULT_OPSET
) -> tuple[Path, float]:
    """Export a file of weights, checked; no file gets the final name before all is well.

    Args:
        model: ``model.pt``, or the run's folder that holds it.
        output: the file to write; None: ``model.onnx`` beside the weights.
        network: the network's name; None: from config.json beside the weights, else from the weights.
        opset: version of ONNX's operators.

    Returns:
        the file, and the largest relative difference that was found.

    Raises:
        ValueError: a package is missing, the weights do not fit, or the graph differs from torch's network.
        OSError: a file cannot be read or written.
    """
    import_packages()
    weights = model / "model.pt" if model.is_dir() else model
    output = weights.with_suffix(".onnx") if output is None else output
    if output.suffix != ".onnx":
        raise ValueError(f"--output must end in .onnx, got {output}")
    backbone, name, embedding_size = load_network(weights, network)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(output)
    try:
        export(backbone, temporary, opset)
        metadata = metadata_of(name, embedding_size, file_sha256(weights), backbone.input_shape[1])
        describe(temporary, metadata, opset)
        difference = compare(temporary, backbone)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the exported network differs from torch's by {difference:.1e} of the largest output, allowed is "
                f"{TOLERANCE:g}; {output} was not written. Try another --opset; if the difference is nan, the "
                "weights hold such numbers"
            )
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return output, difference


def _first_line(error: BaseException) -> str:
    return next((line.strip()[:200] for line in str(error).splitlines() if line.strip()), type(error).__name__)


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 2 for what the user can fix."""
    parser = argparse.ArgumentParser(
        prog="torch2onnx.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="model.pt, or the run's folder that holds it")
    parser.add_argument(
        "--network", help="its name (default: from config.json next to model.pt, else from the weights)"
    )
    parser.add_argument("--output", type=Path, help="file to write (default: model.onnx next to model.pt)")
    parser.add_argument("--opset", type=int, default=DEFAULT_OPSET, help=f"default {DEFAULT_OPSET}")
    parser.add_argument("--simplify", help=argparse.SUPPRESS)  # of other projects: these graphs need none
    options = parser.parse_args(argv)
    try:
        output, difference = convert(options.model, options.output, options.network, options.opset)
    except (ValueError, OSError) as error:
        complain("torch2onnx.py", error)
        return 2
    batches = " and ".join(map(str, CHECKED_BATCHES))
    print(f"{output}: differs from torch by at most {difference:.1e} of the largest output, at batch {batches}")
    print("input: aligned faces, RGB, (x / 255 - 0.5) / 0.5; output: embeddings, not normalised")
    return 0


if __name__ == "__main__":
    sys.exit(main())
