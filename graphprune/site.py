"""What an operator sees while the analysis visits one of its nodes.

A tensor's *axes* are a list with one entry per axis: a vector of labels (one per index), or a single pinned label where
every index is always present.  A `Site` gives an operator's rule the axes of its inputs, lets it unify and pin them, and
notes what the later stages need: which weight plays which role, what is contracted where, and what costs MACs.

Start reading at `Site.match`, which applies a rule in the notation of `graphprune.rules`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, overload

import numpy as np

from .graph import Dim, Graph, is_parameter
from .labels import Ids, Labels, OpenAxis, Reason
from .node_view import NodeView
from .options import Experts, Normalization
from .real_values import Numbers
from .rules import parse

if TYPE_CHECKING:
    from .experts import Choice

FREED = "(--normalization kept frees it)"
"""How the reason of an axis ends that a statistic alone pins."""

Axis = Ids | int
"""The labels along one axis: a vector, or one pinned label that stands for the whole axis."""

Axes = list[Axis]
LooseAxis = Ids | int | OpenAxis
"""An axis that may be open still: what rules pass on without looking at single indices."""

AnyAxis = TypeVar("AnyAxis", bound=LooseAxis)

Results = Sequence[Sequence[LooseAxis] | None]
"""The axes of each result of a node; None where the rank is unknown."""
Role = Literal["producer", "consumer", "carrier"]


@dataclass(frozen=True)
class TensorAxis:
    """One axis of an initializer as one node reads it.

    `roles` lists, for each dimension of the axis, its labels and the role it plays there.  `parameter` is the operand's
    name in the operator's table entry ("scale", "weight", ...), for criteria that look for it.
    """

    tensor: str
    axis: int
    ids: Ids
    roles: tuple[tuple[Ids, Role], ...]
    parameter: str
    node: int


@dataclass(frozen=True)
class Contraction:
    """Axis `axis` of input `input` of a node is summed over: masking it there is masking the network."""

    node: int
    input: int
    axis: int
    ids: Ids
    zero: str = ""
    """The value that holds the zero point of a quantised input."""


class Origin(NamedTuple):
    """The initializer that a value is computed from, and which of its axes each axis of the value is."""

    tensor: str
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Statistic:
    """A node takes a statistic over an axis with these labels, of what is kept of it."""

    node: int
    ids: Ids


@dataclass(frozen=True)
class Chosen:
    """A node chooses `count` of the indices of an axis with these labels, and gives their numbers as value `numbers`."""

    node: int
    ids: Ids
    count: int
    numbers: str


@dataclass(frozen=True)
class Taken:
    """A node takes some of axis `axis` of its input: what it takes (`inner`) stays in the input (`outer`), index by index."""

    node: int
    axis: int
    outer: Ids
    inner: Ids


@dataclass(frozen=True)
class MacTerm:
    """Multiply-accumulates of one node: `constant` times the sizes of the axes in `factors`."""

    node: int
    constant: int
    factors: tuple[Ids, ...]


@dataclass
class Ledger:
    """Everything the analysis writes down while it visits the nodes."""

    normalization: Normalization = "pin"
    """Whether normalised channels are pinned, or may leave with the statistics taken over those that stay."""
    experts: Experts = "keep"
    """Whether experts are pinned, or may leave."""
    labels: Labels = field(default_factory=Labels)
    loose: dict[str, Sequence[LooseAxis] | None] = field(default_factory=dict)
    """The axes of every value while the analysis runs."""
    values: dict[str, Axes | None] = field(default_factory=dict)
    """The same when it is done, with all labels made."""
    tensor_axes: list[TensorAxis] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    statistics: list[Statistic] = field(default_factory=list)
    choices: dict[int, Choice] = field(default_factory=dict)
    """The nodes that choose experts (`graphprune.experts`)."""
    numbered: dict[str, Axis] = field(default_factory=dict)
    """Values that hold numbers of places along an axis, with that axis."""
    chosen: list[Chosen] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    """What single readers take (`graphprune.taking`), in the order of the nodes."""
    mac_terms: list[MacTerm] = field(default_factory=list)
    kernel_axes: set[tuple[str, int]] = field(default_factory=set)
    origins: dict[str, Origin] = field(default_factory=dict)
    """Values computed from one initializer alone, axis by axis (a dequantised weight)."""
    numbers: dict[str, Numbers] = field(default_factory=dict)
    """How the numbers of quantised weights are read."""
    unknown: dict[str, Reason] = field(default_factory=dict)
    """Values of unknown rank, and what made them so."""

    def settle(self) -> None:
        """Make the labels of axes that are still open, and write them into the notes; axes pinned as a whole drop out."""
        settled = self.labels.settled
        self.values = {name: None if axes is None else [settled(axis) for axis in axes] for name, axes in self.loose.items()}
        self.loose.clear()
        self.contractions = self._with_labels(self.contractions)
        self.statistics = self._with_labels(self.statistics)
        self.chosen = self._with_labels(self.chosen)
        tensor_axes = self._with_labels(self.tensor_axes)
        self.tensor_axes = [replace(record, roles=self._settled_roles(record.roles)) for record in tensor_axes]
        self.mac_terms = [self._settled_term(term) for term in self.mac_terms]

    def _with_labels(self, records: list[Record]) -> list[Record]:
        pairs = [(record, self.labels.settled(record.ids)) for record in records]
        return [replace(record, ids=ids) for record, ids in pairs if not isinstance(ids, int)]

    def _settled_roles(self, roles: Sequence[tuple[Ids, Role]]) -> tuple[tuple[Ids, Role], ...]:
        pairs = [(self.labels.settled(ids), role) for ids, role in roles]
        return tuple((ids, role) for ids, role in pairs if not isinstance(ids, int))

    def _settled_term(self, term: MacTerm) -> MacTerm:
        factors = [(len(factor), self.labels.settled(factor)) for factor in term.factors]
        constant = term.constant * prod(size for size, ids in factors if isinstance(ids, int))
        return MacTerm(term.node, constant, tuple(ids for _, ids in factors if not isinstance(ids, int)))


Record = TypeVar("Record", TensorAxis, Contraction, Statistic, Chosen)


class Site(NodeView):
    """One node under analysis."""

    def __init__(self, graph: Graph, ledger: Ledger, position: int, parameters: Sequence[str] = ()) -> None:
        super().__init__(graph, position)
        self.ledger = ledger
        self.labels = ledger.labels
        self.parameters = parameters
        self.zero_points: Mapping[int, int] = {}
        """For quantised inputs which input holds their zero point."""

    def axes(self, index: int) -> Axes | None:
        """The axes of input `index` with their labels; None where the rank is unknown or the input is absent."""
        return self.settled(self.loose_axes(index))

    def settled(self, axes: Sequence[LooseAxis] | None) -> Axes | None:
        """Axes with their labels."""
        return None if axes is None else [self.labels.settled(axis) for axis in axes]

    def loose_axes(self, index: int) -> list[LooseAxis] | None:
        """As `axes`, for rules that pass axes on as they are: no labels are made."""
        if not self.has(index):
            return None
        name = self.inputs[index]
        if name not in self.ledger.loose:
            self.ledger.loose[name] = self._initializer_axes(name)
        axes = self.ledger.loose[name]
        return None if axes is None else [self.labels.resolved(axis) for axis in axes]

    def is_constant(self, index: int) -> bool:
        """Whether input `index` depends on no input of the network (a weight, perhaps dequantised)."""
        name = self.inputs[index] if self.has(index) else ""
        return name in self.graph.initializers or name in self.ledger.origins

    def size(self, axis: LooseAxis, dim: Dim) -> int | None:
        """The size of an axis, or None if it is not known."""
        if not isinstance(axis, int):
            return len(axis)
        return dim if isinstance(dim, int) else None

    # ---- constraints ---------------------------------------------------------------------------

    def pinned(self, text: str) -> int:
        """The pinned label for a reason at this node."""
        return self.labels.pin_label(Reason(text, self.label))

    def pin(self, axis: AnyAxis, text: str) -> AnyAxis:
        """Pin an axis; returns it."""
        self.labels.pin_axis(axis, Reason(text, self.label))
        return axis

    def take_statistic(self, axis: LooseAxis, text: str) -> None:
        """The node takes a mean or a norm over an axis: pin it, or note it where the user lets normalised channels leave."""
        if self.ledger.normalization == "pin":
            self.pin(axis, f"{text} {FREED}")
        elif not isinstance(axis, int):
            self.ledger.statistics.append(Statistic(self.position, axis))  # type: ignore[arg-type]  # see Ledger.settle

    def compare(self, axis: Axis, text: str) -> bool:
        """The node compares the indices of an axis: whether they are experts that may leave; else it is pinned."""
        choice = self.ledger.choices.get(self.position)
        if choice is None or choice.obstacle or self.ledger.experts == "keep" or isinstance(axis, int):
            free = "TopK chooses among the experts along this axis (--experts prune lets some leave)"
            self.pin(axis, text if choice is None else choice.obstacle or free)
            return False
        self.ledger.statistics.append(Statistic(self.position, axis))
        return True

    def address(self, index: int, axis: Axis, text: str) -> None:
        """Input `index` holds places along an axis, which pins it; where they are the numbers of experts, those are this axis."""
        numbered = self.ledger.numbered.get(self.inputs[index])
        if numbered is None:
            self.pin(axis, text)
        else:
            self.unify(axis, numbered)

    def pin_axes(self, axes: Sequence[LooseAxis] | None, text: str) -> None:
        """Pin every axis of a tensor."""
        for axis in axes or ():
            self.pin(axis, text)

    @overload
    def unify(self, a: Axis, b: Axis) -> Axis: ...

    @overload
    def unify(self, a: LooseAxis, b: LooseAxis) -> LooseAxis: ...

    def unify(self, a: LooseAxis, b: LooseAxis) -> LooseAxis:
        """Unify two axes of equal size; returns the one that carries more information."""
        a, b = self.labels.resolved(a), self.labels.resolved(b)
        if a is b or (isinstance(a, int) and isinstance(b, int)):
            return a
        if isinstance(a, int):
            a, b = b, a
        assert not isinstance(a, int)
        if not isinstance(b, int) and len(a) != len(b):
            text = f"{self.operator} meets axes of sizes {len(a)} and {len(b)} here"
            self.pin(a, text)
            return self.pin(b, text)
        return self.labels.unify_axes(a, b)

    def align_right(self, index: int, axes: Sequence[LooseAxis]) -> None:
        """Input `index` is broadcast to a value with these axes: unify what is not of size 1, and note it as a carrier."""
        own = zip(reversed(self.loose_axes(index) or ()), reversed(self.shape(index) or ()), strict=False)
        for (axis, dim), wanted in zip(own, reversed(axes), strict=False):
            if dim != 1:
                self.unify(axis, wanted)
        self.note_carrier(index)

    def vector(self, axis: Axis, size: int) -> Ids:
        """An axis as a vector of labels."""
        return np.full(size, axis, np.int32) if isinstance(axis, int) else axis

    def refuse(self, text: str) -> list[list[LooseAxis] | None]:
        """Pin every axis of every input and result, for one reason."""
        for index in range(len(self.inputs)):
            self.pin_axes(self.loose_axes(index), text)
        return [self.pinned_result(index, text) for index in range(len(self.outputs))]

    def refuse_unknown(self) -> list[list[LooseAxis] | None]:
        """As `refuse`, where the rank of an input is unknown: for the reason that made it so."""
        known = [self.ledger.unknown[name] for name in self.inputs if name in self.ledger.unknown]
        reason = known[0] if known else Reason(f"the rank of an input of {self.operator} is unknown", self.label)
        for index in range(len(self.inputs)):
            for axis in self.loose_axes(index) or ():
                self.labels.pin_axis(axis, reason)
        self.ledger.unknown |= dict.fromkeys(self.outputs, reason)
        return [self.pinned_result(index, reason.text) for index in range(len(self.outputs))]

    def pinned_result(self, index: int, text: str) -> list[LooseAxis] | None:
        """Axes of output `index`, all pinned for one reason; None where the rank is unknown."""
        shape = self.output_shape(index)
        return None if shape is None else [self.pinned(text)] * len(shape)

    # ---- notes for the later stages ------------------------------------------------------------

    def contract(self, index: int, axis: int) -> None:
        """Note that axis `axis` of input `index` is summed over."""
        ids = (self.loose_axes(index) or [])[axis]
        if not isinstance(ids, int):
            point = self.zero_points.get(index, -1)
            zero = self.inputs[point] if self.has(point) else ""
            note = Contraction(self.position, index, axis, ids, zero)  # type: ignore[arg-type]  # see Ledger.settle
            self.ledger.contractions.append(note)

    def note_macs(self, constant: int, axes: Sequence[tuple[LooseAxis, int]]) -> None:
        """Note multiply-accumulates: `constant` times the product of axes, each with the size that counts while it is pinned."""
        resolved = [(self.labels.resolved(axis), size) for axis, size in axes]
        fixed = prod(size for axis, size in resolved if isinstance(axis, int))
        factors = tuple(axis for axis, _ in resolved if not isinstance(axis, int))
        self.ledger.mac_terms.append(MacTerm(self.position, constant * fixed, factors))  # type: ignore[arg-type]  # as above

    def typical(self, index: int, axis: int) -> int:
        """The size of an axis of input `index` that costs are counted with."""
        return self.graph.typical_size(self.inputs[index], axis)

    def note_weight(self, index: int, axis: int, roles: Sequence[tuple[LooseAxis, Role]]) -> None:
        """Note the roles that the dimensions of one axis of a weight play."""
        axes = self.loose_axes(index)
        if axes is None or not self.is_constant(index) or isinstance(axes[axis], int):
            return
        origin = self.origin(index, len(axes))
        parameter = self.parameters[index] if index < len(self.parameters) else ""
        note = TensorAxis(origin.tensor, origin.axes[axis], axes[axis], tuple(roles), parameter, self.position)  # type: ignore[arg-type]  # as above
        self.ledger.tensor_axes.append(note)

    def hand_on(self, order: Sequence[int]) -> None:
        """Note that the result is the constant input 0 with its axes in this order."""
        origin = self.origin(0, len(order))
        self.ledger.origins[self.outputs[0]] = Origin(origin.tensor, tuple(origin.axes[axis] for axis in order))

    def origin(self, index: int, rank: int) -> Origin:
        """The initializer that constant input `index` is computed from, and which of its axes each axis is."""
        name = self.inputs[index]
        return self.ledger.origins.get(name, Origin(name, tuple(range(rank))))

    def note_carrier(self, index: int) -> None:
        """Note every axis of a constant operand as a carrier."""
        if self.is_constant(index):
            for axis, ids in enumerate(self.loose_axes(index) or ()):
                if not isinstance(ids, int):
                    self.note_weight(index, axis, [(ids, "carrier")])

    # ---- rules ---------------------------------------------------------------------------------

    def match(
        self,
        text: str,
        sizes: Mapping[str, int] | None = None,
        macs: int | None = None,
        inputs: Sequence[int] | None = None,
    ) -> list[list[LooseAxis] | None]:
        """Apply a typing rule to this node and return the axes of its results.

        `sizes` gives the sizes of dimensions that attributes fix.  With `macs` the node costs that many
        multiply-accumulates for each combination of the rule's dimensions.  `inputs` says which inputs the rule's operands are,
        where they are not the first ones.
        """
        from .rule_match import RuleMatch

        rule = parse(text)
        return RuleMatch(self, rule, dict(sizes or {}), inputs or range(len(rule.operands))).run(macs)

    def _initializer_axes(self, name: str) -> list[LooseAxis] | None:
        shape = self.graph.shape(name)
        if name not in self.graph.initializers or shape is None:
            return None
        if not is_parameter(self.graph.initializers[name]):
            return [self.labels.pin_label(Reason("a constant of integers"))] * len(shape)
        unit = self.labels.pin_label(Reason("an axis of size 1"))
        return [unit if size == 1 else OpenAxis(size) for size in shape if isinstance(size, int)]
