"""Nodes as linear maps: what criteria and repair passes see of a convolution or a matrix product.

A linear node multiplies rows cut from its input by a matrix: result = rows @ matrix + bias, in `blocks` independent blocks (the
groups of a convolution).  With that, second moments of inputs, optimal-brain-surgeon scores and least squares are the same few
lines for every operator; which operators are linear says the operator table.  Start reading at `Linear`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .graph import Array, Graph, attributes
from .labels import Ids
from .node_view import NodeView

Rows = NDArray[np.float32]
"""Shape [blocks, rows, columns]."""

Sizes = tuple[int, ...]

Picks = tuple[NDArray[np.int64], ...]
"""Positions of results, one index vector for each axis but that of the channels."""


@dataclass(frozen=True)
class Linear(ABC):
    """One node that maps rows of `data` linearly to rows of `result`.

    `data_axis` and `result_axis` are those of the channels.
    """

    node: int
    data: str
    weight: str
    bias: str
    result: str
    data_axis: int
    result_axis: int
    shape: tuple[int, ...]
    """The shape of the weight."""

    @property
    @abstractmethod
    def view(self) -> tuple[object, ...]:
        """Nodes with equal views of the same data see the same rows."""

    @abstractmethod
    def rows(self, data: Array, picks: Picks) -> Rows:
        """The rows of the input that lead to the picked results: [blocks, picks, columns]."""

    @abstractmethod
    def result_shape(self, data: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the result for input of this shape."""

    @abstractmethod
    def matrix(self, weight: Array) -> Array:
        """The weight as [blocks, columns, results]."""

    @abstractmethod
    def weight_of(self, matrix: Array) -> Array:
        """The inverse of `matrix`."""

    @abstractmethod
    def channels(self) -> Ids:
        """The index along `data_axis` of every column: [blocks, columns]."""

    @property
    def blocks(self) -> int:
        """The number of independent blocks."""
        return 1

    @cached_property
    def columns(self) -> int:
        """The number of columns of each block."""
        return int(self.channels().shape[1])

    @property
    def carries(self) -> bool:
        """Whether each channel is mapped by itself (depthwise), so that channels are carried rather than summed over."""
        return self.blocks > 1 and len(np.unique(self.channels()[0])) == 1

    def results(self, result: Array, picks: Picks) -> Rows:
        """The picked results: [blocks, picks, results]."""
        flat = np.moveaxis(result, self.result_axis, -1)[picks]
        return np.asarray(flat.reshape(len(flat), self.blocks, flat.shape[-1] // self.blocks).transpose(1, 0, 2), np.float32)

    def may_compare(self, pairs: Iterable[tuple[Array, Array]]) -> bool:
        """Whether data of one network and results of another are of the same rows, whose number may hang on data, and of some."""
        pairs = list(pairs)
        return all(self.result_shape(data.shape) == result.shape for data, result in pairs) and any(r.size for _, r in pairs)

    def result_channels(self) -> Ids:
        """The index along `result_axis` of every result: [blocks, results]."""
        count = self.matrix(np.empty(self.shape, np.bool_)).shape[2]
        return np.arange(self.blocks * count, dtype=np.int32).reshape(self.blocks, count)

    def picks(self, shape: tuple[int, ...], per_sample: int, rng: np.random.Generator) -> Picks:
        """Up to `per_sample` random positions of a result of this shape for each of its samples (axis 0)."""
        axis = self.result_axis % len(shape)
        others = [size for k, size in enumerate(shape) if k != axis]
        inner = prod(others[1:])
        if inner <= per_sample:
            chosen = np.tile(np.arange(inner), others[0])
        else:
            chosen = np.concatenate([rng.choice(inner, per_sample, replace=False) for _ in range(others[0])])
        sample = np.repeat(np.arange(others[0]), min(inner, per_sample))
        return sample, *np.unravel_index(chosen, others[1:] or (1,))[: len(others) - 1]


@dataclass(frozen=True)
class Product(Linear):
    """MatMul or Gemm with a weight of rank 2 as the right operand; `transposed` weights are [results, columns]."""

    transposed: bool

    @property
    def view(self) -> tuple[object, ...]:
        """All products of one input see the same rows."""
        return (self.data,)

    def rows(self, data: Array, picks: Picks) -> Rows:
        """[1, picks, columns]."""
        return np.asarray(data[picks], np.float32)[None]

    def result_shape(self, data: tuple[int, ...]) -> tuple[int, ...]:
        """Columns become results."""
        return (*data[:-1], self.shape[0 if self.transposed else 1])

    def matrix(self, weight: Array) -> Array:
        """[1, columns, results]."""
        return (weight.T if self.transposed else weight)[None]

    def weight_of(self, matrix: Array) -> Array:
        """[columns, results], or transposed."""
        return np.ascontiguousarray(matrix[0].T if self.transposed else matrix[0])

    def channels(self) -> Ids:
        """Columns are channels."""
        return np.arange(self.shape[1 if self.transposed else 0], dtype=np.int32)[None]


@dataclass(frozen=True)
class Convolution(Linear):
    """Conv: a row is a patch, channel by channel."""

    groups: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str

    @property
    def blocks(self) -> int:
        """The groups of the convolution."""
        return self.groups

    @property
    def view(self) -> tuple[object, ...]:
        """Convolutions of the same geometry see the same patches."""
        return (self.data, self.groups, self.shape[1:], self.strides, self.dilations, self.pads, self.auto_pad)

    @property
    def spans(self) -> tuple[int, ...]:
        """The extent of the kernel with its dilation."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.shape[2:], self.dilations, strict=True))

    def result_shape(self, data: tuple[int, ...]) -> tuple[int, ...]:
        """The Conv operator's output shape."""
        padded = (size + sum(pads) for size, pads in zip(data[2:], self._padding(data[2:]), strict=True))
        steps = zip(padded, self.spans, self.strides, strict=True)
        return (data[0], self.shape[0], *((size - span) // stride + 1 for size, span, stride in steps))

    def rows(self, data: Array, picks: Picks) -> Rows:
        """[groups, picks, channels of a group * kernel positions]."""
        kernel = self.shape[2:]
        padded = np.pad(data, [(0, 0), (0, 0), *self._padding(data.shape[2:])])
        windows = sliding_window_view(padded, self.spans, axis=tuple(range(2, data.ndim)))
        corner = tuple(at * stride for at, stride in zip(picks[1:], self.strides, strict=True))
        where: tuple[Any, ...] = (picks[0], slice(None), *corner)
        taps: tuple[Any, ...] = (..., *(slice(None, None, step) for step in self.dilations))
        patches = windows[where][taps]
        flat = patches.reshape(len(patches), self.groups, self.shape[1] * prod(kernel))
        return np.asarray(np.ascontiguousarray(flat.transpose(1, 0, 2)), np.float32)

    def matrix(self, weight: Array) -> Array:
        """[groups, channels of a group * kernel positions, results of a group]."""
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1).transpose(0, 2, 1)

    def weight_of(self, matrix: Array) -> Array:
        """[results, channels of a group, *kernel]."""
        return np.ascontiguousarray(matrix.transpose(0, 2, 1)).reshape(self.shape)

    def channels(self) -> Ids:
        """Each channel fills as many columns as the kernel has positions."""
        inner, kernel = self.shape[1], prod(self.shape[2:])
        return np.repeat(np.arange(self.groups * inner, dtype=np.int32).reshape(self.groups, inner), kernel, axis=1)

    def _padding(self, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
        rank = len(sizes)
        if self.auto_pad in ("NOTSET", "VALID"):
            pads = self.pads if self.auto_pad == "NOTSET" else (0,) * (2 * rank)
            return [(pads[k], pads[k + rank]) for k in range(rank)]
        padding = []
        for size, span, stride in zip(sizes, self.spans, self.strides, strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + span - size)
            small, large = total // 2, total - total // 2
            padding.append((small, large) if self.auto_pad == "SAME_UPPER" else (large, small))
        return padding


@dataclass(frozen=True)
class TransposedConvolution(Linear):
    """ConvTranspose: a row has, for each channel and position of the kernel, what that adds to the result; most are often 0."""

    groups: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    output_padding: tuple[int, ...]

    @property
    def blocks(self) -> int:
        """The groups of the convolution."""
        return self.groups

    @property
    def view(self) -> tuple[object, ...]:
        """Transposed convolutions of the same geometry see the same rows."""
        geometry = self.groups, self.shape[2:], self.strides, self.dilations, self.pads, self.output_padding
        return (self.data, "transposed", *geometry)

    def result_shape(self, data: tuple[int, ...]) -> tuple[int, ...]:
        """The ConvTranspose operator's output shape."""
        rank = len(self.strides)
        sizes = [
            stride * (size - 1) + more + (kernel - 1) * dilation + 1 - self.pads[k] - self.pads[k + rank]
            for k, (size, stride, more, kernel, dilation) in enumerate(
                zip(data[2:], self.strides, self.output_padding, self.shape[2:], self.dilations, strict=True)
            )
        ]
        return (data[0], self.shape[1] * self.groups, *sizes)

    def rows(self, data: Array, picks: Picks) -> Rows:
        """[groups, picks, channels of a group * kernel positions]."""
        rank, count = len(self.strides), len(picks[0])
        where: list[Any] = [picks[0].reshape(-1, *[1] * rank), slice(None)]
        there = np.ones((count, *[1] * rank), bool)
        for k, (kernel, stride, dilation) in enumerate(zip(self.shape[2:], self.strides, self.dilations, strict=True)):
            steps = picks[1 + k][:, None] + self.pads[k] - dilation * np.arange(kernel)
            hits = (steps % stride == 0) & (steps >= 0) & (steps < stride * data.shape[2 + k])
            shape = count, *[kernel if axis == k else 1 for axis in range(rank)]
            where.append(np.where(hits, steps // stride, 0).reshape(shape))
            there = there & hits.reshape(shape)
        taps = np.moveaxis(np.where(there[..., None], data[tuple(where)], 0), -1, 1)
        return np.asarray(taps.reshape(count, self.groups, -1).transpose(1, 0, 2), np.float32)

    def matrix(self, weight: Array) -> Array:
        """[groups, channels of a group * kernel positions, results of a group]."""
        parts = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        return parts.transpose(0, 1, 3, 2).reshape(self.groups, -1, weight.shape[1])

    def weight_of(self, matrix: Array) -> Array:
        """[channels, results of a group, *kernel]."""
        parts = matrix.reshape(self.shape[0], prod(self.shape[2:]), self.shape[1])
        return np.ascontiguousarray(parts.transpose(0, 2, 1)).reshape(self.shape)

    def channels(self) -> Ids:
        """Each channel fills as many columns as the kernel has positions."""
        channels = np.arange(self.shape[0], dtype=np.int32).reshape(self.groups, -1)
        return np.repeat(channels, prod(self.shape[2:]), axis=1)


def convolution(view: NodeView) -> Linear | None:
    """Conv with a constant weight."""
    shape = _weight(view)
    return None if shape is None else Convolution(*_geometry(view, shape), view.attribute("auto_pad", b"NOTSET").decode())


def transposed_convolution(view: NodeView) -> Linear | None:
    """ConvTranspose with a constant weight, whose padding is given."""
    shape = _weight(view)
    if shape is None or view.attribute("output_shape") or view.attribute("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    return TransposedConvolution(*_geometry(view, shape), tuple(view.attribute("output_padding", [0] * (len(shape) - 2))))


def _weight(view: NodeView) -> tuple[int, ...] | None:
    """The shape of a constant weight of a convolution."""
    weight = view.graph.initializers.get(view.inputs[1])
    if weight is None or weight.name in view.graph.overridable or len(weight.dims) < 3:
        return None
    return tuple(weight.dims)


def _geometry(view: NodeView, shape: Sizes) -> tuple[int, str, str, str, str, int, int, Sizes, int, Sizes, Sizes, Sizes]:
    """The fields that both kinds of convolution have, in order."""
    rank = len(shape) - 2
    return (
        view.position,
        view.inputs[0],
        view.inputs[1],
        view.inputs[2] if view.has(2) else "",
        view.outputs[0],
        1,
        1,
        shape,
        int(view.attribute("group", 1)),
        tuple(view.attribute("strides", [1] * rank)),
        tuple(view.attribute("dilations", [1] * rank)),
        tuple(view.attribute("pads", [0] * (2 * rank))),
    )


def product(view: NodeView) -> Linear | None:
    """MatMul, or Gemm with factors of one, of an activation with a constant matrix, which a Transpose may hand on."""
    name, turned = _matrix(view.graph, view.inputs[1])
    weight = view.graph.initializers.get(name)
    found = attributes(view.graph.nodes[view.position])
    plain = not found.get("transA", 0) and found.get("alpha", 1.0) == 1.0 and found.get("beta", 1.0) == 1.0
    shape = view.output_shape()
    if weight is None or name in view.graph.overridable or len(weight.dims) != 2 or not plain:
        return None
    if view.inputs[0] in view.graph.initializers or len(shape or ()) < 2:
        return None
    bias = view.inputs[2] if view.has(2) else ""
    transposed = bool(found.get("transB", 0)) != turned
    return Product(view.position, view.inputs[0], name, bias, view.outputs[0], -1, -1, tuple(weight.dims), transposed)


def _matrix(graph: Graph, name: str) -> tuple[str, bool]:
    """The matrix behind a right operand, and whether a Transpose turns it, as that of tied weights is (`graphprune.folding`)."""
    source = graph.nodes[graph.producers[name]] if name in graph.producers else None
    if source is None or source.op_type != "Transpose" or source.input[0] not in graph.initializers:
        return name, False
    return source.input[0], list(attributes(source).get("perm", (1, 0))) == [1, 0]
