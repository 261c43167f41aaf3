"""Train the network of this example on Fashion-MNIST and write the files that are shipped with it.

The network is small but has the structures that make channel pruning interesting: residual blocks,
inverted residual blocks, squeeze-excitation, a concatenation and depthwise convolutions. It is
trained with a group lasso over coupled channels, so that half of each group ends up near zero and
pruning needs no fine-tuning. Start reading at `main`.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = 0.2860, 0.3530  # of the training images, in 0..1
FLOOR = 0.02
EVAL_SAMPLES, CALIBRATION_SAMPLES = 1000, 256


# --- the network ------------------------------------------------------------------------------


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation and, unless `relu` is off, a ReLU."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(cout)
        # Layers that are added have equal bias gradients, and the exporter merges equal tensors.
        nn.init.normal_(self.norm.bias, std=0.01)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu(x, inplace=True) if self.relu else x


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut: the identity, or a 1x1 convolution if shapes change."""

    def __init__(self, cin: int, inner: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvNorm(cin, inner, 3, stride)
        self.conv2 = ConvNorm(inner, cout, 3, relu=False)
        same = cin == cout and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm(cin, cout, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x), inplace=True)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all channels."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, inner, 1)
        self.expand = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))
        return x * torch.sigmoid(self.expand(gate))


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, squeeze-excitation (if `squeeze`), project; add if it fits."""

    def __init__(self, cin: int, inner: int, cout: int, stride: int = 1, squeeze: int = 0) -> None:
        super().__init__()
        self.expand = ConvNorm(cin, inner, 1)
        self.depthwise = ConvNorm(inner, inner, 3, stride, groups=inner)
        self.squeeze = SqueezeExcite(inner, squeeze) if squeeze else nn.Identity()
        self.project = ConvNorm(inner, cout, 1, relu=False)
        self.adds = cin == cout and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.adds else y


class Branches(nn.Module):
    """A 1x1 and a 3x3 convolution of the same input, concatenated."""

    def __init__(self, cin: int, pointwise: int, spatial: int) -> None:
        super().__init__()
        self.pointwise = ConvNorm(cin, pointwise, 1)
        self.spatial = ConvNorm(cin, spatial, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.pointwise(x), self.spatial(x)], dim=1)


class SeparableConv(nn.Module):
    """A depthwise 3x3 convolution followed by a 1x1 convolution."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.depthwise = ConvNorm(cin, cin, 3, groups=cin)
        self.pointwise = ConvNorm(cin, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise(self.depthwise(x))
        return y


class FashionNet(nn.Module):
    """The example's network: float images in 0..255, shaped [batch, 1, 28, 28], to ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 32, 3)
        self.res1 = Residual(32, 32, 64, stride=2)
        self.res2 = Residual(64, 32, 64)
        self.mb1 = InvertedResidual(64, 128, 64, squeeze=32)
        self.mb2 = InvertedResidual(64, 128, 96, stride=2)
        self.branches = Branches(96, 64, 32)
        self.mb3 = InvertedResidual(96, 192, 96, squeeze=32)
        self.head = SeparableConv(96, 128)
        self.classifier = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem((image / 255.0 - MEAN) / STD)
        x = self.mb1(self.res2(self.res1(x)))
        x = self.head(self.mb3(self.branches(self.mb2(x))))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


# --- coupled channels and the group lasso -----------------------------------------------------


@dataclass(frozen=True)
class Member:
    """The part of `tensor` that belongs to a group: `width` entries of `axis` from `start`."""

    tensor: Tensor
    axis: int
    start: int = 0

    def part(self, width: int) -> Tensor:
        """A view with the group's channels as the first axis."""
        return self.tensor.detach().narrow(self.axis, self.start, width).movedim(self.axis, 0)


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together, with everything that is removed with them."""

    name: str
    width: int
    members: list[Member]

    def norms(self) -> Tensor:
        """The L2 norm of each channel over all members."""
        parts = [member.part(self.width) for member in self.members]
        return torch.stack([p.reshape(self.width, -1).square().sum(1) for p in parts]).sum(0).sqrt()

    def scale(self, factor: Tensor) -> None:
        """Multiply each channel by its factor, in place and in all members."""
        for member in self.members:
            part = member.part(self.width)
            part.mul_(factor.view(-1, *[1] * (part.dim() - 1)))

    def size(self) -> int:
        """The number of weights of one channel."""
        return sum(member.part(self.width)[0].numel() for member in self.members)


def written(layer: ConvNorm, start: int = 0) -> list[Member]:
    """What a layer holds for the channels it writes."""
    tensors = (layer.conv.weight, layer.norm.weight, layer.norm.bias)
    return [Member(tensor, 0, start) for tensor in tensors]


def filters(layer: nn.Conv2d) -> list[Member]:
    """What a convolution with a bias holds for the channels it writes."""
    assert layer.bias is not None
    return [Member(layer.weight, 0), Member(layer.bias, 0)]


def read(layer: nn.Conv2d | nn.Linear, start: int = 0) -> list[Member]:
    """What a layer holds for the channels it reads."""
    return [Member(layer.weight, 1, start)]


def inner_groups(name: str, block: InvertedResidual) -> Iterator[Group]:
    """The groups inside an inverted residual block."""
    members = [*written(block.expand), *written(block.depthwise), *read(block.project.conv)]
    if isinstance(block.squeeze, SqueezeExcite):
        reduce, expand = block.squeeze.reduce, block.squeeze.expand
        members += [*read(reduce), *filters(expand)]
        gate = [*filters(reduce), *read(expand)]
        yield Group(f"{name}.squeeze", reduce.out_channels, gate)
    yield Group(name, block.expand.conv.out_channels, members)


def branch_group(net: FashionNet, layer: ConvNorm, name: str, start: int) -> Group:
    """One branch of the concatenation, which `mb3` adds to and the head reads from `start` on."""
    members = [
        *written(layer),
        *written(net.mb3.project, start),
        *written(net.head.depthwise, start),
        *read(net.mb3.expand.conv, start),
        *read(net.head.pointwise.conv, start),
    ]
    return Group(name, layer.conv.out_channels, members)


def channel_groups(net: FashionNet) -> list[Group]:
    """All groups of the network, written out by hand; graphprune finds them by itself."""
    res1, res2, mb1, mb2 = net.res1, net.res2, net.mb1, net.mb2
    assert isinstance(res1.shortcut, ConvNorm)
    stem = [*written(net.stem), *read(res1.conv1.conv), *read(res1.shortcut.conv)]
    stream = [
        *written(res1.conv2),
        *written(res1.shortcut),
        *written(res2.conv2),
        *written(mb1.project),
        *read(res2.conv1.conv),
        *read(mb1.expand.conv),
        *read(mb2.expand.conv),
    ]
    fork = [*written(mb2.project)]
    fork += [*read(net.branches.pointwise.conv), *read(net.branches.spatial.conv)]
    return [
        Group("stem", 32, stem),
        Group("res1", 32, [*written(res1.conv1), *read(res1.conv2.conv)]),
        Group("res2", 32, [*written(res2.conv1), *read(res2.conv2.conv)]),
        Group("stream", 64, stream),
        *inner_groups("mb1", mb1),
        *inner_groups("mb2", mb2),
        Group("fork", 96, fork),
        branch_group(net, net.branches.pointwise, "pointwise", 0),
        branch_group(net, net.branches.spatial, "spatial", 64),
        *inner_groups("mb3", net.mb3),
        Group("head", 128, [*written(net.head.pointwise), *read(net.classifier)]),
    ]


def smallest(norms: Tensor, fraction: float) -> Tensor:
    """The indices of the smallest `fraction` of the norms."""
    return norms.argsort()[: round(fraction * len(norms))]


def shrink(groups: list[Group], strength: float, fraction: float) -> None:
    """One proximal step of the group lasso on the smallest `fraction` of each group's channels.

    It stops at FLOOR times the largest norm, so that channels become negligible but not dead.
    """
    for group in groups:
        norms = group.norms()
        target = (norms - strength * math.sqrt(group.size())).clamp_min(FLOOR * norms.max().item())
        factor = torch.ones_like(norms)
        chosen = smallest(norms, fraction)
        factor[chosen] = (target / norms)[chosen].clamp_max(1)
        group.scale(factor)


def near_zero(groups: list[Group]) -> float:
    """The share of channels whose norm is below 5 % of the largest in their group."""
    norms = [group.norms() for group in groups]
    return torch.cat([n < 0.05 * n.max() for n in norms]).double().mean().item()


def masked(net: FashionNet, fraction: float) -> FashionNet:
    """A copy of the network with the smallest `fraction` of each group's channels set to zero."""
    net = copy.deepcopy(net)
    for group in channel_groups(net):
        factor = torch.ones(group.width)
        factor[smallest(group.norms(), fraction)] = 0
        group.scale(factor)
    return net


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
