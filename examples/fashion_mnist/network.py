"""The network of this example: small, with the structures that make channel pruning interesting.

Residual blocks, inverted residual blocks, squeeze-excitation, a concatenation and depthwise convolutions.  Start reading at
`FashionNet`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = 0.2860, 0.3530  # of the training images, in 0..1


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
