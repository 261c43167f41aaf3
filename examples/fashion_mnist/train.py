"""Train the network of this example on Fashion-MNIST and write the files that are shipped with it.

It is trained with a group lasso over coupled channels, so that half of each group ends up near zero and pruning needs no
fine-tuning.  Start reading at `main`.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from lasso import channel_groups, masked, near_zero, shrink
from network import FashionNet
from torch import Tensor, nn
from torch.nn import functional as F

EVAL_SAMPLES, CALIBRATION_SAMPLES = 1000, 256


# --- training ---------------------------------------------------------------------------------


def augment(images: Tensor) -> Tensor:
    """Shift each image by up to two pixels, and mirror it with probability one half."""
    count, size = len(images), images.shape[-1]
    columns = torch.arange(size) + torch.randint(0, 5, (count, 1))
    rows = torch.arange(size) + torch.randint(0, 5, (count, 1))
    columns = torch.where(torch.rand(count, 1) < 0.5, columns, columns.flip(1))
    index = torch.arange(count).view(-1, 1, 1)
    return F.pad(images, (2, 2, 2, 2))[index, 0, rows[:, :, None], columns[:, None, :]][:, None]


def learning_rate(progress: float, highest: float) -> float:
    """Linear warm-up over the first tenth of the training, then a cosine down to zero."""
    return highest * min(progress / 0.1, (1 + math.cos(math.pi * progress)) / 2)


def lasso_ramp(progress: float) -> float:
    """The strength of the lasso, from 0 in the first 15 % of the training to 1 at its half."""
    return min(max((progress - 0.15) / 0.35, 0.0), 1.0)


def train(net: FashionNet, images: Tensor, labels: Tensor, options: argparse.Namespace) -> None:
    """Train with SGD, each step followed by a proximal step of the group lasso."""
    parameters = net.parameters()
    optimizer = torch.optim.SGD(parameters, 0.0, 0.9, weight_decay=options.decay, nesterov=True)
    groups = channel_groups(net)
    net.train()
    for epoch in range(options.epochs):
        start, total = time.perf_counter(), 0.0
        batches = torch.randperm(len(images)).split(options.batch)
        for step, chosen in enumerate(batches):
            progress = (epoch + step / len(batches)) / options.epochs
            rate = learning_rate(progress, options.rate)
            optimizer.param_groups[0]["lr"] = rate
            logits = net(augment(images[chosen]))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shrink(groups, rate * lasso_ramp(progress) * options.lasso, options.fraction)
            total += loss.item()
        line = f"epoch {epoch + 1:2d}  loss {total / len(batches):.4f}"
        seconds = time.perf_counter() - start
        print(f"{line}  near zero {near_zero(groups):.0%}  {seconds:.0f} s", flush=True)


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that are classified correctly."""
    net.eval()
    predicted = torch.cat([net(batch).argmax(1) for batch in images.split(500)])
    return (predicted == labels).double().mean().item()


# --- data and files ---------------------------------------------------------------------------


def load(path: Path) -> dict[str, Tensor]:
    """The arrays of the data file, images as float [n, 1, 28, 28] and labels as int64."""
    with np.load(path) as data:
        arrays = {name: torch.from_numpy(data[name]) for name in data.files}
    return {k: v.float()[:, None] if k[0] == "x" else v.long() for k, v in arrays.items()}


def export(net: FashionNet, path: Path) -> None:
    """Write the network as ONNX, with BatchNormalization nodes and parameter names kept."""
    torch.onnx.export(
        net.eval(),
        (torch.zeros(1, 1, 28, 28),),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )


def write_samples(data: dict[str, Tensor], folder: Path) -> None:
    """Write the test images with labels that are shipped, and the training images to calibrate."""
    images = data["x_test"][:EVAL_SAMPLES].byte().numpy()
    labels = data["y_test"][:EVAL_SAMPLES].numpy()
    np.savez_compressed(folder / "eval.npz", image=images, labels=labels)
    calibration = data["x_train"][:CALIBRATION_SAMPLES].byte().numpy()
    np.savez_compressed(folder / "calibration.npz", image=calibration)


def report(net: FashionNet, data: dict[str, Tensor], fraction: float) -> None:
    """Print the accuracy of the network and of a copy with its smallest channels at zero."""
    images, labels = data["x_test"], data["y_test"]
    for name, candidate in (("network", net), (f"{fraction:.0%} masked", masked(net, fraction))):
        for count in (len(images), EVAL_SAMPLES):
            share = accuracy(candidate, images[:count], labels[:count])
            print(f"{name}: {share:.2%} of the first {count} test images are right")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="fashion_mnist.npz")
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent)
    parser.add_argument("--epochs", type=int, default=36)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.05, help="highest learning rate")
    parser.add_argument("--decay", type=float, default=5e-4, help="weight decay")
    parser.add_argument("--lasso", type=float, default=0.005, help="strength of the group lasso")
    parser.add_argument("--fraction", type=float, default=0.5, help="share of channels to shrink")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train, export and report."""
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(options.seed)
    data = load(options.data)
    net = FashionNet().to(memory_format=torch.channels_last)
    train(net, data["x_train"], data["y_train"], options)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    export(net, options.output_dir / "model.onnx")
    write_samples(data, options.output_dir)
    report(net, data, options.fraction)


if __name__ == "__main__":
    main()
