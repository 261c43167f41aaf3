"""Quantise a CIFAR-10 classifier with ONNX Runtime, prune it as it is, and compare accuracy on the test images.

    python benchmarks/quantised.py MODEL.onnx FOLDER_WITH_NPZ [--targets 0.7 0.5] [--count 10000]

FOLDER_WITH_NPZ has `train30k.npz` and `test.npz` (x uint8 [N, 32, 32, 3], y).  The first 128 training images say what ranges
activations have, the first 2,048 calibrate, without labels.  Rows: floating point, QDQ with scales per channel, QDQ with one
scale and uint8 weights.  Start reading at `main`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import graphprune
from graphprune.evaluation import accuracy

MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RANGES, CALIBRATION, BATCH = 128, 2048, 16

FORMS: dict[str, dict[str, Any]] = {
    "int8 weights, a scale for each channel": {
        "per_channel": True,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
    },
    "uint8 weights, one scale": {"per_channel": False, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8},
}


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """Images for ONNX Runtime's quantiser."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self.batches: Iterator[dict[str, np.ndarray]] = iter(
            [{name: images[start : start + BATCH]} for start in range(0, len(images), BATCH)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None."""
        return next(self.batches, None)


def images(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """[N, 3, 32, 32] normalised, and labels."""
    with np.load(path) as arrays:
        scaled = (arrays["x"][:count] / np.float32(255) - MEAN) / SPREAD
        return scaled.transpose(0, 3, 1, 2).astype(np.float32), arrays["y"][:count].astype(np.int64)


def main() -> None:
    """Print a line for each form of the network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--targets", nargs="+", default=["0.7", "0.5"])
    parser.add_argument("--count", type=int, default=10000)
    options = parser.parse_args()
    name = onnx.load(options.model, load_external_data=False).graph.input[0].name
    seen, _ = images(options.data / "train30k.npz", CALIBRATION)
    test, labels = images(options.data / "test.npz", options.count)
    with tempfile.TemporaryDirectory() as folder:
        networks = {"floating point": options.model}
        for number, (form, changes) in enumerate(FORMS.items()):
            networks[form] = Path(folder) / f"{number}.onnx"
            batches = Batches(name, seen[:RANGES])
            quantize_static(options.model, networks[form], batches, quant_format=QuantFormat.QDQ, **changes)
        for form, path in networks.items():
            print(f"{form}: {accuracy(onnx.load(path), {name: test, 'labels': labels}):.2%}", flush=True)
            for target in options.targets:
                for recipe in ("fast", "balanced"):
                    calibration = {"calibration": {name: seen}} if recipe == "balanced" else {}
                    result = graphprune.prune(path, targets=f"macs={target}", recipe=recipe, **calibration)
                    found = accuracy(result.model, {name: test, "labels": labels})
                    print(f"  {recipe} at {target}: {found:.2%}", flush=True)


if __name__ == "__main__":
    main()
