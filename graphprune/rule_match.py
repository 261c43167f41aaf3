"""Applying a typing rule to a node: its dimensions are bound to the labels of the node's axes.

Start reading at `RuleMatch.run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from .rules import PINNED, Operand, Rule
from .rules import Axis as Pattern
from .site import LooseAxis, Role, Site

UNKNOWN_RANK = "unknown rank"


class RuleMatch:
    """One application of a rule: binds its dimensions to the labels of the node's axes."""

    def __init__(self, site: Site, rule: Rule, sizes: dict[str, int], inputs: Sequence[int]) -> None:
        self.site = site
        self.rule = rule
        self.inputs = inputs
        self.sizes = sizes
        self.typical: dict[str, int] = {}
        """Sizes of dimensions that nothing fixes, for counting costs."""
        self.bound: dict[str, LooseAxis] = {}
        self.spreads: dict[int, list[Pattern]] = {}

    def run(self, macs: int | None) -> list[list[LooseAxis] | None]:
        """Bind the operands, note roles, contractions and MACs, and build the results."""
        for index, operand in zip(self.inputs, self.rule.operands, strict=True):
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
        axes, shape = self.site.loose_axes(index), self.site.shape(index)
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
                    origin = self.site.origin(index, len(axes))
                    self.site.ledger.kernel_axes.add((origin.tensor, origin.axes[position]))
                continue
            self.typical.setdefault(pattern[0], self.site.graph.typical_size(self.site.inputs[index], position))
            if not self._bind(pattern, axis, self.site.size(axis, dim)):
                self.site.pin(axis, f"{kind} has axes whose sizes do not fit its attributes")
        return None

    def _bind(self, pattern: Pattern, axis: LooseAxis, size: int | None) -> bool:
        """Bind the factors of one axis.  False if its size cannot be factored."""
        name, rest = pattern[0], pattern[1:]
        if not rest:
            self._bind_name(name, axis, size)
            return True
        axis = self.site.labels.settled(axis)
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

    def _bind_name(self, name: str, axis: LooseAxis, size: int | None) -> None:
        if name[0].isupper():
            axis = self.site.pin(axis, f"{self.site.operator} needs every index of this axis")
        if size is not None:
            self.sizes.setdefault(name, size)
        self.bound[name] = self.site.unify(self.bound[name], axis) if name in self.bound else self.site.labels.resolved(axis)

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

    def _role(self, name: str, written: set[str], read: set[str], contracts: bool) -> tuple[LooseAxis, Role] | None:
        axis = self.bound.get(name)
        if axis is None or isinstance(axis, int):
            return None
        if name not in written and not name.startswith("..."):
            return axis, "consumer"
        return axis, ("producer" if contracts and name not in read else "carrier")

    def _note_macs(self, per_combination: int) -> None:
        sizes = {name: self.sizes.get(name, self.typical.get(name, 1)) for name in self.bound}
        self.site.note_macs(per_combination, [(axis, sizes[name]) for name, axis in self.bound.items()])

    def _result(self, index: int, result: Operand) -> list[LooseAxis] | None:
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

    def _build(self, pattern: Pattern) -> LooseAxis:
        axes = [self.bound.get(name, self.site.pinned("an axis that the operator makes")) for name in pattern]
        if len(pattern) == 1:
            return axes[0]
        result, *rest = (self.site.labels.settled(axis) for axis in axes)
        size = self.sizes.get(pattern[0])
        for name, axis in zip(pattern[1:], rest, strict=True):
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
