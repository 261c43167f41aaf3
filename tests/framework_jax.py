"""A small ResNet and a small transformer in Flax."""

from __future__ import annotations

import jax
from flax import nnx

HEAD = "head.kernel"


class Block(nnx.Module):
    def __init__(self, channels: int, inner: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(channels, inner, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(inner, use_running_average=True, rngs=rngs)
        self.conv2 = nnx.Conv(inner, channels, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(channels, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        y = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(x + self.norm2(self.conv2(y)))


class ResNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.block1 = Block(16, 24, rngs)
        self.down = nnx.Conv(16, 24, (3, 3), strides=2, rngs=rngs)
        self.block2 = Block(24, 16, rngs)
        self.block3 = Block(24, 24, rngs)
        self.head = nnx.Linear(24, 5, rngs=rngs)

    def __call__(self, x):
        x = self.block1(nnx.relu(self.stem(x)))
        x = self.block3(self.block2(nnx.relu(self.down(x))))
        return self.head(x.mean((1, 2)))


class Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, width: int = 20, heads: int = 4, size: int = 6, inner: int = 40) -> None:
        self.heads, self.size = heads, size
        self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.q, self.k, self.v = (nnx.Linear(width, heads * size, rngs=rngs) for _ in range(3))
        self.o = nnx.Linear(heads * size, width, rngs=rngs)
        self.up, self.down = nnx.Linear(width, inner, rngs=rngs), nnx.Linear(inner, width, rngs=rngs)

    def __call__(self, x):
        y = self.norm1(x)
        shape = (*x.shape[:2], self.heads, self.size)
        q, k, v = (each(y).reshape(shape).transpose(0, 2, 1, 3) for each in (self.q, self.k, self.v))
        scores = jax.nn.softmax(q @ k.transpose(0, 1, 3, 2) / self.size**0.5, -1)
        y = (scores @ v).transpose(0, 2, 1, 3).reshape(*x.shape[:2], self.heads * self.size)
        x = x + self.o(y)
        return x + self.down(nnx.relu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Linear(10, 20, rngs=rngs)
        self.layer1, self.layer2 = Layer(rngs), Layer(rngs)
        self.head = nnx.Linear(20, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.layer2(self.layer1(self.embed(x))))


def resnet():
    return ResNet(nnx.Rngs(0)), (jax.ShapeDtypeStruct((1, 16, 16, 3), "float32"),)


def transformer():
    return Transformer(nnx.Rngs(0)), (jax.ShapeDtypeStruct((1, 7, 10), "float32"),)
