"""The layers of a network, before and after: width, MACs, time, and the groups that they write and read.

A layer is a node that multiplies: a convolution, a matrix product, a recurrent layer.  Start reading at `layers_of`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .cost import CostModel
from .graph import operator_name
from .inference import Analysis
from .profiling import NodeTimes

Present = NDArray[np.bool_]


@dataclass(frozen=True)
class Layer:
    """One layer in the original and in the pruned network."""

    node: str
    operator: str
    weight: str
    """The name of its first weight; empty for products of two activations."""
    shape: tuple[int, ...]
    shape_after: tuple[int, ...]
    width: int
    """The channels of its result; 0 where their number is not known."""
    width_after: int
    macs: int
    macs_after: int
    writes: tuple[int, ...]
    """The groups that its weights write, as positions in `Analysis.groups`."""
    reads: tuple[int, ...]
    ms: float | None = None
    """Milliseconds, where they were measured and could be told apart from those of other nodes."""
    ms_after: float | None = None

    @property
    def share(self) -> float:
        """The share of the channels that stays."""
        return self.width_after / self.width if self.width else 1.0


def layers_of(analysis: Analysis, present: Present, times: tuple[NodeTimes, NodeTimes] | None = None) -> list[Layer]:
    """The layers in the order in which the network computes them, with what is left of them for the labels that stay."""
    costs = CostModel(analysis)
    before = costs.node_macs(analysis.present({}))
    after = costs.node_macs(analysis.closed(present))
    writes, reads = _groups_of_nodes(analysis)
    old, new = (times[0].nodes, times[1].nodes) if times else ({}, {})
    layers = []
    for position in sorted(before):
        node = analysis.graph.nodes[position]
        weight = next((name for name in node.input if name in analysis.graph.initializers), "")
        shape, shape_after = _shapes(analysis, weight, present)
        width = _width(analysis, position, present)
        own = tuple(sorted(writes[position])), tuple(sorted(reads[position]))
        macs = before[position], after[position]
        layers.append(
            Layer(
                node.name, operator_name(node), weight, shape, shape_after, *width, *macs, *own, old.get(node.name), new.get(node.name)
            )
        )
    return layers


def _groups_of_nodes(analysis: Analysis) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
    writes: dict[int, set[int]] = defaultdict(set)
    reads: dict[int, set[int]] = defaultdict(set)
    for number, group in enumerate(analysis.groups):
        for member in group.members:
            if member.role != "carrier":
                (writes if member.role == "producer" else reads)[member.node].add(number)
    return writes, reads


def _shapes(analysis: Analysis, weight: str, present: Present) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if not weight:
        return (), ()
    shape = tuple(analysis.graph.initializers[weight].dims)
    left = {axis: int(analysis.index_mask(ids, present).sum()) for axis, ids in analysis.free_axes(weight)}
    return shape, tuple(left.get(axis, size) for axis, size in enumerate(shape))


def _width(analysis: Analysis, position: int, present: Present) -> tuple[int, int]:
    """The channels of a node's first result: axis 1 behind a convolution, else the last."""
    node = analysis.graph.nodes[position]
    shape = analysis.graph.shape(node.output[0]) or ()
    if not shape:
        return 0, 0
    axis = 1 if "Conv" in node.op_type and "Nhwc" not in node.op_type and len(shape) > 1 else len(shape) - 1
    ids = dict(analysis.free_axes(node.output[0])).get(axis)
    if ids is not None:
        return len(ids), int(analysis.index_mask(ids, present).sum())
    size = shape[axis]
    return (size, size) if isinstance(size, int) else (0, 0)
