"""A group lasso over coupled channels (Wen et al. 2016): half of each group ends up near zero.  Start reading at `shrink`."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from network import ConvNorm, FashionNet, InvertedResidual, SqueezeExcite
from torch import Tensor, nn

FLOOR = 0.02


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
