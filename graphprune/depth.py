"""Depth: residual branches that can leave as a whole.

A branch whose last layer reads nothing any more adds a constant, its bias, whatever comes in:

    x + conv2(relu(conv1(x)))    becomes    x + bias

So a block, an attention or an MLP leaves when the group that its last layer reads keeps no unit: depth is the end of width, and
one budget is spread over both (compare MultiPruner, Muñoz et al. 2025).  Everything else holds as it is: the masked
reference masks all that the last layer reads, and that is what the proof compares with.  Start reading at `residuals`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .branches import has_branches
from .calibration import linear_nodes
from .edit import KeptOf
from .graph import Array, Graph, node_reads
from .groups import Group
from .inference import Analysis
from .labels import Ids, Labels
from .linear import Linear
from .site import Ledger
from .tails import ANYWHERE, Tail, tail_of


@dataclass(frozen=True)
class End:
    """The last layer of a residual branch, and the node that adds its results to the other branch."""

    linear: Linear
    tail: Tail
    sum: int

    def constant(self, graph: Graph, kept_of: KeptOf) -> Array:
        """What the branch adds when its last layer reads nothing: float64, one number for each kept channel."""
        tail = tail_of(graph, self.linear, ANYWHERE)  # not self.tail: `graph` may have repaired weights
        size = len(tail.gain)
        bias = graph.constant(self.linear.bias) if self.linear.bias else None
        alone = np.zeros(size) if bias is None else np.asarray(bias, np.float64).reshape(-1)
        kept = kept_of(tail.total, tail.axis)
        constant = np.asarray(tail.gain * alone + tail.offset)
        return constant if kept is None else constant[kept]

    def tensor(self, graph: Graph, constant: Array) -> TensorProto:
        """An initializer with one number for each kept channel, to broadcast against the sum."""
        rank = len(graph.shape(self.tail.total) or ())
        kind = helper.tensor_dtype_to_np_dtype(graph.element_type(self.tail.total))
        shaped = constant.reshape([-1] + [1] * (rank - self.tail.axis - 1))
        return numpy_helper.from_array(shaped.astype(kind), f"{self.tail.total}_constant")


@dataclass(frozen=True)
class Residual:
    """A residual branch that leaves when `group` keeps nothing, with all groups (`inner`) and nodes that only serve it."""

    group: Group
    inner: tuple[Group, ...]
    ends: tuple[End, ...]
    nodes: frozenset[int]

    @cached_property
    def labels(self) -> Ids:
        """All labels that leave with it."""
        return np.concatenate([self.group.labels, *(group.labels for group in self.inner)])

    def has_left(self, present: NDArray[np.bool_]) -> bool:
        """Whether it is gone, with these labels present."""
        return not present[self.group.labels].any()


def with_residuals(analysis: Analysis) -> Analysis:
    """The analysis with the branches that can leave: their groups may keep nothing."""
    return replace(analysis, residuals=residuals(analysis.graph, analysis.ledger, analysis.groups))


def residuals(graph: Graph, ledger: Ledger, groups: Sequence[Group]) -> tuple[Residual, ...]:
    """The branches that can leave; of several groups that would empty the same one, the smallest."""
    if has_branches(graph.model):
        return ()
    ends = _ends(graph)
    emptied = _emptied_by(ledger, groups)
    reads = _Reads(graph)
    found: list[Residual] = []
    taken: set[str] = set()
    for group in sorted((group for group in groups if not group.follows), key=lambda group: group.size):
        last = tuple(end for end in ends if end.linear.data in emptied[group.id])
        totals = [end.tail.total for end in last]
        if not last or taken & set(totals) or len(set(totals)) < len(totals):
            continue
        nodes = reads.unread_without(end.tail.straight for end in last)
        if all(reads.of(value) <= nodes for value in emptied[group.id]):
            inner = tuple(
                other
                for other in groups
                if other is not group
                and {member.node for member in other.members} <= nodes
                and all(reads.of(value) <= nodes for value in emptied[other.id])
            )
            found.append(Residual(group, inner, last, nodes))
            taken.update(totals)
    return tuple(sorted(found, key=lambda residual: residual.ends[0].sum))


def _ends(graph: Graph) -> list[End]:
    """The layers whose results do nothing but go into a sum with another value."""
    found = []
    for linear in linear_nodes(graph).values():
        tail = tail_of(graph, linear, ANYWHERE)
        if tail.other:
            found.append(End(linear, tail, graph.uses[tail.straight][0].node))
    return found


def _emptied_by(ledger: Ledger, groups: Sequence[Group]) -> Mapping[str, set[str]]:
    """For each group the values of which some axis is empty when it is."""
    labels: Labels = ledger.labels
    owner = np.full(len(labels), -1, np.int64)
    for number, group in enumerate(groups):
        owner[group.labels] = number
    axes = [
        (name, ids) for name, value in ledger.values.items() for ids in value or () if not isinstance(ids, int) and len(ids) > 0
    ]
    found: dict[str, set[str]] = defaultdict(set)
    if not axes:
        return found
    starts = np.cumsum([0, *(len(ids) for _, ids in axes[:-1])])
    for leaf in labels.leaves(np.concatenate([ids for _, ids in axes])).T:
        low, high = (ufunc.reduceat(owner[leaf], starts) for ufunc in (np.minimum, np.maximum))
        for k in np.flatnonzero((low == high) & (low >= 0)).tolist():
            found[groups[int(low[k])].id].add(axes[k][0])
    return found


class _Reads:
    """Who reads what."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._readers: dict[str, set[int]] = defaultdict(set)
        self._reads = [node_reads(node) for node in graph.nodes]
        for position, names in enumerate(self._reads):
            for name in names:
                self._readers[name].add(position)
        for value in graph.outputs:
            self._readers[value.name].add(-1)

    def of(self, value: str) -> set[int]:
        """The positions of the nodes that read a value; -1 for the network's caller."""
        return self._readers.get(value, set())

    def unread_without(self, values: Iterable[str]) -> frozenset[int]:
        """The nodes that nobody needs once these values are read by one node less."""
        lost: Counter[str] = Counter()
        unread: set[int] = set()
        stack = list(values)
        while stack:
            value = stack.pop()
            lost[value] += 1
            position = self._graph.producers.get(value)
            if position is None or position in unread:
                continue
            if all(lost[name] >= len(self.of(name)) for name in self._graph.nodes[position].output if name):
                unread.add(position)
                stack.extend(self._reads[position])
        return frozenset(unread)


def removed(analysis: Analysis, present: NDArray[np.bool_]) -> tuple[dict[int, End], frozenset[int]]:
    """The sums that get a constant for a branch, by position, and the nodes that nobody needs then."""
    left = [residual for residual in analysis.residuals if residual.has_left(present)]
    if not left:
        return {}, frozenset()
    ends = [end for residual in left for end in residual.ends]
    nodes = _Reads(analysis.graph).unread_without(end.tail.straight for end in ends)
    return {end.sum: end for end in ends if end.sum not in nodes}, nodes


def add_constant(model: ModelProto, node: NodeProto, end: End, graph: Graph, kept_of: KeptOf) -> None:
    """Let a sum add what a branch gives that is gone, in place; nothing where that is zero."""
    constant = end.constant(graph, kept_of)
    if not constant.any():
        node.op_type = "Identity"
        node.input[:] = [end.tail.other]
        return
    model.graph.initializer.append(end.tensor(graph, constant))
    node.input[:] = [end.tail.other, model.graph.initializer[-1].name]
