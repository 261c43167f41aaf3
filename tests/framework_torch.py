"""A small ResNet and a small transformer in torch."""

from __future__ import annotations

import torch
from torch import nn

HEAD = "head.weight"


class Block(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block1 = Block(16, 24)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.block2 = Block(24, 16)
        self.block3 = Block(24, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.block1(torch.relu(self.stem(x)))
        x = self.block3(self.block2(torch.relu(self.down(x))))
        return self.head(x.mean((2, 3)))


class Layer(nn.Module):
    def __init__(self, width: int = 20, heads: int = 4, size: int = 6, inner: int = 40) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, heads * size) for _ in range(3))
        self.o = nn.Linear(heads * size, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = (each(y).unflatten(-1, (self.heads, self.size)).transpose(1, 2) for each in (self.q, self.k, self.v))
        scores = torch.softmax(q @ k.transpose(2, 3) / self.size**0.5, -1)
        x = x + self.o((scores @ v).transpose(1, 2).flatten(2))
        return x + self.down(torch.relu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(10, 20)
        self.layer1, self.layer2 = Layer(), Layer()
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        return self.head(self.layer2(self.layer1(self.embed(x))))


def resnet():
    torch.manual_seed(0)
    return ResNet().eval(), (torch.randn(1, 3, 16, 16),)


def transformer():
    torch.manual_seed(0)
    return Transformer().eval(), (torch.randn(1, 7, 10),)


def untraced():
    return ResNet()
