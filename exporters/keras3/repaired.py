"""Repaired weights of convolutions into which the converter merged a batch normalisation.

What is merged in the ONNX model is found by its values among the products of each layer's kernel with the factors of the
normalisation behind it; the changed product is divided by the factors again.  Start reading at `KerasRepair`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from graphprune.edit import KeptOf
from graphprune.graph import Array, Graph

from ..pytorch.repaired import Repair, divided
from .unfolded import Layer, Unfolded, layers_of, values_in, values_of

Model = Any

SAME = 1e-4
"""Largest difference between what the converter merged and the same product here, relative to the largest magnitude."""


@dataclass(frozen=True)
class Pair:
    """A layer and the batch normalisation behind it."""

    layer: Layer
    norm: Layer
    spread: tuple[int, ...]
    """The shape in which a vector of channels is multiplied with the kernel."""

    @property
    def deviation(self) -> Array:
        """What the normalisation divides by."""
        variance: Array = values_of(self.norm.moving_variance).astype(np.float64)
        return np.sqrt(variance + float(self.norm.epsilon))

    @property
    def scale(self) -> Array:
        """What the normalisation multiplies by."""
        return np.ones_like(self.deviation) if self.norm.gamma is None else values_of(self.norm.gamma).astype(np.float64)

    def order(self, merged: Array) -> tuple[int, ...] | None:
        """The order of axes in which a weight is the kernel times the factors; None where it is not."""
        own = values_of(self.layer.kernel).astype(np.float64) * (self.scale / self.deviation).reshape(self.spread)
        for order in permutations(range(own.ndim)) if own.ndim == merged.ndim else ():
            other = own.transpose(order)
            if other.shape == merged.shape and np.abs(other - merged).max() <= SAME * np.abs(merged).max():
                return order
        return None


class KerasRepair(Repair):
    """Variables in their full shapes, changed as the repaired weights have it, by their names in the unfolded graph."""

    def __init__(
        self, original: Graph, weights: Mapping[str, Array], kept_of: KeptOf, model: Model, traced: Unfolded, equal: Any
    ) -> None:
        """`equal` are values of the traced graph, each with the values of `original` that it equals."""
        super().__init__(original, weights, kept_of, traced.graph, equal)
        self._pairs = list(_pairs(model, traced))
        self._variables = {id(variable): name for name, variable in traced.variables.items()}

    def _unfold(self, name: str) -> bool:
        for use in self._original.uses.get(name, []):
            node = self._original.nodes[use.node]
            merged = self._original.constant(node.input[1]) if len(node.input) > 1 else None
            for pair in self._pairs:
                if merged is None:
                    continue
                order = pair.order(merged)
                if order is not None:
                    weight, bias = self._folded_operand(node, 1), self._folded_operand(node, 2)
                    assert weight is not None
                    return self._divided(pair, weight.transpose(np.argsort(order)), bias)
        return False

    def _divided(self, pair: Pair, weight: Array, bias: Array | None) -> bool:
        """Change kernel, scale and shift so that layer and normalisation together are `weight` and `bias`."""
        own = getattr(pair.layer, "bias", None)
        mean = values_of(pair.norm.moving_mean)
        parts = divided(bias, pair.scale, pair.deviation, mean, None if own is None else values_of(own))
        other_scale = pair.norm.gamma is None and not np.array_equal(parts.scale, pair.scale)
        if other_scale or (pair.norm.beta is None and bias is not None):
            return False
        self._change(pair.layer.kernel, weight / parts.factor.reshape(pair.spread))
        if pair.norm.gamma is not None:
            self._change(pair.norm.gamma, parts.scale)
        if pair.norm.beta is not None:
            self._change(pair.norm.beta, parts.shift)
        return True

    def _change(self, variable: Any, values: Array) -> None:
        self._parameter(self._variables[id(variable)])[...] = values


def _pairs(model: Model, traced: Unfolded) -> Iterator[Pair]:
    import keras

    readers = Counter(
        value.name for uses in traced.uses.values() for use in uses for value in values_in([list(use.positional), use.named])
    )
    for norm in layers_of(model):
        uses = traced.uses.get(id(norm), [])
        if not isinstance(norm, keras.layers.BatchNormalization) or len(uses) != 1:
            continue
        source = next(values_in(list(uses[0].positional)), None)
        layer: Layer = traced.producers.get(source.name) if source is not None else None
        if source is None or readers[source.name] != 1 or getattr(layer, "kernel", None) is None:
            continue
        spread = _spread(tuple(layer.kernel.shape), int(norm.moving_mean.shape[0]), layer)
        if spread is not None and len(traced.uses[id(layer)]) == 1:
            yield Pair(layer, norm, spread)


def _spread(shape: tuple[int, ...], channels: int, layer: Layer) -> tuple[int, ...] | None:
    """The shape of a vector of channels beside a kernel: (..., in, out), transposed (..., out, in), depthwise both."""
    rest = (1,) * (len(shape) - 2)
    if hasattr(layer, "depth_multiplier"):
        return (*rest, *shape[-2:]) if shape[-2] * shape[-1] == channels else None
    transposed = "Transpose" in type(layer).__name__
    if transposed:
        return (*rest, channels, 1) if shape[-2] == channels else None
    return (*rest, 1, channels) if shape[-1] == channels else None
