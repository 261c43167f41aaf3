"""Trained networks with samples, for accuracy: a torch module, the same as ONNX, calibration images, test images with labels.

    python -m trained NAME FOLDER [DATA]

`fashion_example` is the network that is shipped in examples/; the others need a folder with data (`--data`), as
benchmarks/README.md says.  Start reading at `Trained`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import children
import numpy as np

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "fashion_mnist"
CALIBRATION, TEST = 2048, 10000
LIMIT = 3600
SHIPPED = ["fashion_example"]
WITH_DATA = ["resnet56_cifar10"]
TRAINED_HERE = ["mobilenet_v2_fashion", "resnet18_fashion"]


@dataclass(frozen=True)
class Trained:
    """Where the files are; `error` says why they are not there."""

    module: Path
    onnx: Path
    calibration: Path
    test: Path
    error: str | None = None

    @classmethod
    def at(cls, name: str, folder: Path) -> Trained:
        """The paths alone."""
        ends = (".trained.pt", ".trained.onnx", ".calibration.npz", ".test.npz")
        return cls(*(folder / f"{name}{end}" for end in ends))

    @classmethod
    def of(cls, name: str, folder: Path, data: Path | None) -> Trained:
        """Make what is missing, in a process of its own."""
        files = cls.at(name, folder)
        if files.test.exists():  # it is written last
            return files
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "trained", name, str(folder), *([str(data)] if data else [])]
        row = children.run(children.Command(words), LIMIT)
        return cls(files.module, files.onnx, files.calibration, files.test, row.get("error"))


def code(data: Path | None) -> list[str]:
    """Folders with the classes of the pickled modules."""
    return [str(EXAMPLE), *([str(data / "loaders")] if data else [])]


def names(data: Path | None, everything: bool) -> list[str]:
    """What can be measured; networks that are trained here take minutes."""
    return [*SHIPPED, *(WITH_DATA if data else []), *(TRAINED_HERE if data and everything else [])]


def fashion_example(_: Path) -> tuple[Any, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The module of the example with the weights of its ONNX file, whose names are those of the module."""
    import onnx
    import torch

    sys.path.insert(0, str(EXAMPLE))
    from network import FashionNet

    weights = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(EXAMPLE / "model.onnx").graph.initializer}
    network = FashionNet()
    wanted = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    network.load_state_dict({name: torch.from_numpy(weights[name].copy()) for name in wanted}, strict=False)
    missing = wanted - set(weights)
    if missing:
        raise ValueError(f"{EXAMPLE / 'model.onnx'} has no {sorted(missing)}")
    with np.load(EXAMPLE / "calibration.npz") as calibration, np.load(EXAMPLE / "eval.npz") as test:
        return network, dict(calibration), dict(test)


def resnet56_cifar10(data: Path) -> tuple[Any, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The network of the pruning literature, from a folder with checkpoint, loader and images."""
    sys.path.insert(0, str(data / "loaders"))
    import cifar_nets

    def samples(name: str, count: int) -> dict[str, np.ndarray]:
        with np.load(data / "cifar10" / name) as arrays:
            x = (arrays["x"][:count] / np.float32(255) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
            return {"image": x.transpose(0, 3, 1, 2).astype(np.float32), "labels": arrays["y"][:count].astype(np.int64)}

    network = cifar_nets.load_akamaster(56, str(data / "torch"))
    return network, samples("train30k.npz", CALIBRATION), samples("test.npz", TEST)


def fashion(name: str) -> Callable[[Path], tuple[Any, dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """A classifier of torchvision, trained on Fashion-MNIST."""

    def make(data: Path) -> tuple[Any, dict[str, np.ndarray], dict[str, np.ndarray]]:
        import train_classifiers

        with np.load(data / "fashion_mnist" / "fashion_mnist.npz") as arrays:
            network = train_classifiers.trained(name, dict(arrays))

            def samples(part: str, count: int) -> dict[str, np.ndarray]:
                image = train_classifiers.images(arrays[f"x_{part}"][:count]).numpy()
                return {"image": image, "labels": arrays[f"y_{part}"][:count].astype(np.int64)}

            return network, samples("train", CALIBRATION), samples("test", TEST)

    return make


MAKERS = {
    "fashion_example": fashion_example,
    "resnet56_cifar10": resnet56_cifar10,
    "mobilenet_v2_fashion": fashion("mobilenet_v2"),
    "resnet18_fashion": fashion("resnet18"),
}


def main() -> None:
    """Write the four files, the last one last."""
    import torch

    name, folder = sys.argv[1], Path(sys.argv[2])
    files = Trained.at(name, folder)
    network, calibration, test = MAKERS[name](Path(sys.argv[3] if len(sys.argv) > 3 else ""))
    network.eval()
    example = torch.from_numpy(calibration["image"][:2]).float()
    torch.save((network, (example,)), files.module)
    shapes = ({0: torch.export.Dim("batch")},)
    if name in SHIPPED:
        shutil.copyfile(EXAMPLE / "model.onnx", files.onnx)
    else:
        options = {"input_names": ["image"], "dynamic_shapes": shapes, "verbose": False, "external_data": False}
        torch.onnx.export(network, (example,), files.onnx, dynamo=True, **options)
    np.savez_compressed(files.calibration, **calibration)
    np.savez_compressed(files.test, **test)


if __name__ == "__main__":
    main()
