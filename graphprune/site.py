"""What an operator sees while the analysis visits one of its nodes.

A tensor's *axes* are a list with one entry per axis: a vector of labels (one per index), or a single pinned label where
every index is always present.  A `Site` gives an operator's rule the axes of its inputs, lets it unify and pin them, and
notes what the later stages need: which weight plays which role, what is contracted where, and what costs MACs.

Start reading at `Site.match`, which applies a rule in the notation of `graphprune.rules`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import numpy as np

from .graph import Dim, Graph, is_parameter
from .labels import Ids, Labels, Reason
from .node_view import NodeView
from .rules import PINNED, Operand, Rule, parse
from .rules import Axis as Pattern

Axis = Ids | int
"""The labels along one axis: a vector, or one pinned label that stands for the whole axis."""

Axes = list[Axis]
Results = list[Axes | None]
"""The axes of each result of a node; None where the rank is unknown."""
UNKNOWN_RANK = "unknown rank"
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


@dataclass(frozen=True)
class MacTerm:
    """Multiply-accumulates of one node: `constant` times the sizes of the axes in `factors`."""

    node: int
    constant: int
    factors: tuple[Ids, ...]


@dataclass
class Ledger:
    """Everything the analysis writes down while it visits the nodes."""

    labels: Labels = field(default_factory=Labels)
    values: dict[str, Axes | None] = field(default_factory=dict)
    tensor_axes: list[TensorAxis] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    mac_terms: list[MacTerm] = field(default_factory=list)
    kernel_axes: set[tuple[str, int]] = field(default_factory=set)
    origins: dict[str, str] = field(default_factory=dict)
    """Values computed from one initializer alone, axis by axis (a dequantised weight), and that initializer."""
    unknown: dict[str, Reason] = field(default_factory=dict)
    """Values of unknown rank, and what made them so."""


class Site(NodeView):
    """One node under analysis."""

    def __init__(self, graph: Graph, ledger: Ledger, position: int, parameters: Sequence[str] = ()) -> None:
        super().__init__(graph, position)
        self.ledger = ledger
        self.labels = ledger.labels
        self.parameters = parameters

    def axes(self, index: int) -> Axes | None:
        """The axes of input `index`; None where the rank is unknown or the input is absent."""
        if not self.has(index):
            return None
        name = self.inputs[index]
        if name not in self.ledger.values:
            self.ledger.values[name] = self._initializer_axes(name)
        return self.ledger.values[name]

    def is_constant(self, index: int) -> bool:
        """Whether input `index` depends on no input of the network (a weight, perhaps dequantised)."""
        name = self.inputs[index] if self.has(index) else ""
        return name in self.graph.initializers or name in self.ledger.origins

    def size(self, axis: Axis, dim: Dim) -> int | None:
        """The size of an axis, or None if it is not known."""
        if not isinstance(axis, int):
            return len(axis)
        return dim if isinstance(dim, int) else None

    # ---- constraints ---------------------------------------------------------------------------

    def pinned(self, text: str) -> int:
        """The pinned label for a reason at this node."""
        return self.labels.pin_label(Reason(text, self.label))

    def pin(self, axis: Axis, text: str) -> Axis:
        """Pin an axis; returns it."""
        if not isinstance(axis, int):
            self.labels.pin(axis, Reason(text, self.label))
        return axis

    def pin_axes(self, axes: Axes | None, text: str) -> None:
        """Pin every axis of a tensor."""
        for axis in axes or ():
            self.pin(axis, text)

    def unify(self, a: Axis, b: Axis) -> Axis:
        """Unify two axes of equal size; returns the one that carries more information."""
        if isinstance(a, int):
            a, b = b, a
        if isinstance(a, int) or a is b:
            return a
        if isinstance(b, int):
            self.labels.unify(a, np.full(len(a), b, np.int32))
        elif len(a) == len(b):
            self.labels.unify(a, b)
        else:
            text = f"{self.operator} meets axes of sizes {len(a)} and {len(b)} here"
            self.pin(a, text)
            self.pin(b, text)
        return a

    def vector(self, axis: Axis, size: int) -> Ids:
        """An axis as a vector of labels."""
        return np.full(size, axis, np.int32) if isinstance(axis, int) else axis

    def refuse(self, text: str) -> list[Axes | None]:
        """Pin every axis of every input and result, for one reason."""
        for index in range(len(self.inputs)):
            self.pin_axes(self.axes(index), text)
        return [self.pinned_result(index, text) for index in range(len(self.outputs))]

    def refuse_unknown(self) -> list[Axes | None]:
        """As `refuse`, where the rank of an input is unknown: for the reason that made it so."""
        known = [self.ledger.unknown[name] for name in self.inputs if name in self.ledger.unknown]
        reason = known[0] if known else Reason(f"the rank of an input of {self.operator} is unknown", self.label)
        for index in range(len(self.inputs)):
            for axis in self.axes(index) or ():
                if not isinstance(axis, int):
                    self.labels.pin(axis, reason)
        self.ledger.unknown |= dict.fromkeys(self.outputs, reason)
        return [self.pinned_result(index, reason.text) for index in range(len(self.outputs))]

    def pinned_result(self, index: int, text: str) -> Axes | None:
        """Axes of output `index`, all pinned for one reason; None where the rank is unknown."""
        shape = self.output_shape(index)
        return None if shape is None else [self.pinned(text)] * len(shape)

    # ---- notes for the later stages ------------------------------------------------------------

    def contract(self, index: int, axis: int) -> None:
        """Note that axis `axis` of input `index` is summed over."""
        axes = self.axes(index)
        if axes is not None and not isinstance(axes[axis], int):
            self.ledger.contractions.append(Contraction(self.position, index, axis, axes[axis]))  # type: ignore[arg-type]

    def note_weight(self, index: int, axis: int, roles: Sequence[tuple[Ids, Role]]) -> None:
        """Note the roles that the dimensions of one axis of a weight play."""
        axes = self.axes(index)
        name = self.inputs[index]
        name = self.ledger.origins.get(name, name)
        if axes is None or name not in self.graph.initializers or isinstance(axes[axis], int):
            return
        ids: Ids = axes[axis]  # type: ignore[assignment]
        parameter = self.parameters[index] if index < len(self.parameters) else ""
        self.ledger.tensor_axes.append(TensorAxis(name, axis, ids, tuple(roles), parameter, self.position))

    def note_carrier(self, index: int) -> None:
        """Note every axis of a constant operand as a carrier."""
        if self.is_constant(index):
            for axis, ids in enumerate(self.axes(index) or ()):
                if not isinstance(ids, int):
                    self.note_weight(index, axis, [(ids, "carrier")])

    # ---- rules ---------------------------------------------------------------------------------

    def match(self, text: str, sizes: Mapping[str, int] | None = None, macs: int | None = None) -> list[Axes | None]:
        """Apply a typing rule to this node and return the axes of its results.

        `sizes` gives the sizes of dimensions that attributes fix.  With `macs` the node costs that many
        multiply-accumulates for each combination of the rule's dimensions.
        """
        return RuleMatch(self, parse(text), dict(sizes or {})).run(macs)

    def _initializer_axes(self, name: str) -> Axes | None:
        shape = self.graph.shape(name)
        if name not in self.graph.initializers or shape is None:
            return None
        if not is_parameter(self.graph.initializers[name]):
            return [self.labels.pin_label(Reason("a constant of integers"))] * len(shape)
        unit = self.labels.pin_label(Reason("an axis of size 1"))
        return [unit if size == 1 else self.labels.fresh(size) for size in shape if isinstance(size, int)]


class RuleMatch:
    """One application of a rule: binds its dimensions to the labels of the node's axes."""

    def __init__(self, site: Site, rule: Rule, sizes: dict[str, int]) -> None:
        self.site = site
        self.rule = rule
        self.sizes = sizes
        self.typical: dict[str, int] = {}
        """Sizes of dimensions that nothing fixes, for counting costs."""
        self.bound: dict[str, Axis] = {}
        self.spreads: dict[int, list[Pattern]] = {}

    def run(self, macs: int | None) -> list[Axes | None]:
        """Bind the operands, note roles, contractions and MACs, and build the results."""
        for index, operand in enumerate(self.rule.operands):
            if not self.site.has(index):
                if operand.optional:
                    continue
                return self.site.refuse(f"{self.site.operator} lacks input {index}")
            problem = self._bind_operand(index, operand)
            if problem:
                return self.site.refuse_unknown() if problem is UNKNOWN_RANK else self.site.refuse(problem)
        self._note_roles()
        if macs is not None:
            self._note_macs(macs)
        return [self._result(index, result) for index, result in enumerate(self.rule.results)]

    def _bind_operand(self, index: int, operand: Operand) -> str | None:
        axes, shape = self.site.axes(index), self.site.shape(index)
        kind = self.site.operator
        if axes is None:
            return UNKNOWN_RANK
        spread = operand.spread(len(axes))
        if spread is None:
            return f"{kind} with an operand of rank {len(axes)} has no rule"
        self.spreads[index] = spread
        dims = shape if shape is not None and len(shape) == len(axes) else (None,) * len(axes)
        for position, (pattern, axis, dim) in enumerate(zip(spread, axes, dims, strict=True)):
            if pattern == (PINNED,):
                self.site.pin(axis, f"{kind} needs every index of this axis")
                if self.site.is_constant(index):
                    self.site.ledger.kernel_axes.add((self.site.inputs[index], position))
                continue
            self.typical.setdefault(pattern[0], self.site.graph.typical_size(self.site.inputs[index], position))
            if not self._bind(pattern, axis, self.site.size(axis, dim)):
                self.site.pin(axis, f"{kind} has axes whose sizes do not fit its attributes")
        return None

    def _bind(self, pattern: Pattern, axis: Axis, size: int | None) -> bool:
        """Bind the factors of one axis.  False if its size cannot be factored."""
        name, rest = pattern[0], pattern[1:]
        if not rest:
            self._bind_name(name, axis, size)
            return True
        if isinstance(axis, int):
            sizes = self._factor_sizes(pattern, size)
            for factor in pattern:
                self._bind_name(factor, axis, None if sizes is None else sizes[factor])
            return True
        sizes = self._factor_sizes(pattern, size)
        if sizes is None:
            for factor in pattern:
                self._bind_name(factor, self.site.pinned("an axis whose factors are unknown"), None)
            return False
        inner = prod(sizes[factor] for factor in rest)
        outer_axis, inner_axis = self.site.labels.split(axis, sizes[name], inner)
        self._bind_name(name, outer_axis, sizes[name])
        return self._bind(rest, inner_axis, inner)

    def _bind_name(self, name: str, axis: Axis, size: int | None) -> None:
        if name[0].isupper():
            axis = self.site.pin(axis, f"{self.site.operator} needs every index of this axis")
        if size is not None:
            self.sizes.setdefault(name, size)
        self.bound[name] = self.site.unify(self.bound[name], axis) if name in self.bound else axis

    def _factor_sizes(self, pattern: Pattern, size: int | None) -> dict[str, int] | None:
        """The sizes of all factors, at most one of which is found by division."""
        if size is None:
            return None
        known = {factor: self.sizes[factor] for factor in pattern if factor in self.sizes}
        open_factors = [factor for factor in pattern if factor not in known]
        product = prod(known.values())
        if len(open_factors) > 1 or product == 0 or size % product or (not open_factors and product != size):
            return None
        return known | dict.fromkeys(open_factors, size // product)

    def _note_roles(self) -> None:
        written = set().union(*(result.names for result in self.rule.results))
        read: set[str] = set()
        data = [index for index in self.spreads if not self.site.is_constant(index)]
        for index in data or list(self.spreads)[:1]:
            read |= {name for pattern in self.spreads[index] for name in pattern}
        masked: set[str] = set()
        for index in [*data, *(i for i in self.spreads if i not in data)]:
            for position, pattern in enumerate(self.spreads[index]):
                summed = {name for name in pattern if _is_dimension(name) and name not in written}
                if summed - masked:
                    self.site.contract(index, position)
                    masked |= summed
        for index in (i for i in self.spreads if i not in data):
            contracts = any(n not in written for p in self.spreads[index] for n in p if _is_dimension(n))
            for position, pattern in enumerate(self.spreads[index]):
                if pattern == (PINNED,):
                    continue
                roles = [self._role(name, written, read, contracts) for name in pattern]
                self.site.note_weight(index, position, [role for role in roles if role is not None])

    def _role(self, name: str, written: set[str], read: set[str], contracts: bool) -> tuple[Ids, Role] | None:
        axis = self.bound.get(name)
        if axis is None or isinstance(axis, int):
            return None
        if name not in written and not name.startswith("..."):
            return axis, "consumer"
        return axis, ("producer" if contracts and name not in read else "carrier")

    def _note_macs(self, per_combination: int) -> None:
        constant, factors = per_combination, []
        for name, axis in self.bound.items():
            if isinstance(axis, int):
                constant *= self.sizes.get(name, self.typical.get(name, 1))
            else:
                factors.append(axis)
        self.site.ledger.mac_terms.append(MacTerm(self.site.position, constant, tuple(factors)))

    def _result(self, index: int, result: Operand) -> Axes | None:
        kind = self.site.operator
        shape = self.site.output_shape(index)
        rests = [axes for axes in self.spreads.values() if any(p[0].startswith("...") for p in axes)]
        if shape is not None:
            spread = result.spread(len(shape))
        elif result.rest is None:
            spread = list(result.axes)
        else:
            spread = result.spread(len(self.spreads[0])) if rests or 0 in self.spreads else None
        if spread is None:
            return None
        text = f"{kind} computes this axis from all of its input"
        return [self.site.pinned(text) if p == (PINNED,) else self._build(p) for p in spread]

    def _build(self, pattern: Pattern) -> Axis:
        axes = [self.bound.get(name, self.site.pinned("an axis that the operator makes")) for name in pattern]
        result = axes[0]
        size = self.sizes.get(pattern[0])
        for name, axis in zip(pattern[1:], axes[1:], strict=True):
            inner = self.sizes.get(name)
            if isinstance(result, int) and isinstance(axis, int):
                size = None if size is None or inner is None else size * inner
                continue
            if size is None or inner is None:
                return self.site.pinned("an axis of unknown size")
            result = self.site.labels.outer(self.site.vector(result, size), self.site.vector(axis, inner))
            size *= inner
        return result


def _is_dimension(name: str) -> bool:
    return name != PINNED and not name.startswith("...") and not name[0].isupper()
