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
from .site import Role

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
    free: bool
    """Whether any of them could leave."""
    macs: int
    macs_after: int
    writes: tuple[int, ...]
    """The groups that its weights write, as positions in `Analysis.groups`."""
    holds: tuple[int, ...]
    """The groups that the channels of its result belong to: those that it writes or, as depthwise convolutions do, passes on."""
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
    groups = _groups_of_nodes(analysis)
    old, new = (times[0].nodes, times[1].nodes) if times else ({}, {})
    layers = []
    for position in sorted(before):
        node = analysis.graph.nodes[position]
        weight = next((name for name in node.input if name in analysis.graph.initializers), "")
        shape, shape_after = _shapes(analysis, weight, present)
        width = _width(analysis, position, present)
        writes, carries, reads = (groups[position, role] for role in ("producer", "carrier", "consumer"))
        layers.append(
            Layer(
                node=node.name,
                operator=operator_name(node),
                weight=weight,
                shape=shape,
                shape_after=shape_after,
                width=width[0],
                width_after=width[1],
                free=width[2],
                macs=before[position],
                macs_after=after[position],
                writes=tuple(sorted(writes)),
                holds=tuple(sorted(writes | carries)),
                reads=tuple(sorted(reads)),
                ms=old.get(node.name),
                ms_after=new.get(node.name),
            )
        )
    return layers


def _groups_of_nodes(analysis: Analysis) -> dict[tuple[int, Role], set[int]]:
    """The groups that have members at a node, by the role of those."""
    groups: dict[tuple[int, Role], set[int]] = defaultdict(set)
    for number, group in enumerate(analysis.groups):
        for member in group.members:
            groups[member.node, member.role].add(number)
    return groups


def _shapes(analysis: Analysis, weight: str, present: Present) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if not weight:
        return (), ()
    shape = tuple(analysis.graph.initializers[weight].dims)
    left = {axis: int(analysis.index_mask(ids, present).sum()) for axis, ids in analysis.free_axes(weight)}
    return shape, tuple(left.get(axis, size) for axis, size in enumerate(shape))


def _width(analysis: Analysis, position: int, present: Present) -> tuple[int, int, bool]:
    """The channels of a node's first result (axis 1 of a convolution, else the last) before and after; whether any are free."""
    node = analysis.graph.nodes[position]
    shape = analysis.graph.shape(node.output[0]) or ()
    if not shape:
        return 0, 0, False
    axis = 1 if "Conv" in node.op_type and "Nhwc" not in node.op_type and len(shape) > 1 else len(shape) - 1
    ids = dict(analysis.free_axes(node.output[0])).get(axis)
    if ids is not None:
        return len(ids), int(analysis.index_mask(ids, present).sum()), not analysis.ledger.labels.is_pinned(ids).all()
    size = shape[axis]
    return (size, size, False) if isinstance(size, int) else (0, 0, False)
