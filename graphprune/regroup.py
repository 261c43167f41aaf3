"""Reshape and Flatten: axes are cut and joined in memory order.  Start reading at `Regroup.run`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from .edit import Edit
from .graph import Dim
from .joined_targets import joined_constants, joined_sizes
from .monomial import Monomial, monomials
from .shape_flow import turned_back
from .site import LooseAxis, Results, Site


def reshape(site: Site) -> Results:
    """Regroups axes in memory order: splits an axis into a product, or joins several into one."""
    axes, source, target = site.loose_axes(0), site.shape(0), site.output_shape()
    if axes is None or source is None or target is None:
        return site.refuse("Reshape with an unknown rank")
    if site.operator == "Reshape" and site.constant(1) is None:
        turned, sizes = _turned_back(site, axes), joined_sizes(site.graph, site.position)
        if turned is not None or sizes is None:
            return turned or _carried_or_refused(site, axes)
        source, target = sizes
    site.note_carrier(0)
    return [Regroup(site, axes, source, target).run()]


def _turned_back(site: Site, axes: Sequence[LooseAxis]) -> Results | None:
    """The axes that a value had before another Reshape, where this one undoes that; None where it does not."""
    found = turned_back(site.graph, site.position)
    if found is None:
        return None
    before, between = (site.ledger.loose.get(name) for name in found)
    if before is None or between is None or not all(map(site.labels.are_same, axes, between)):
        site.pin_axes(before, "the target shape of Reshape is computed at run time")
        return None
    return [list(before)]


def _carried_or_refused(site: Site, axes: Sequence[LooseAxis]) -> Results:
    if all(isinstance(axis, int) for axis in axes):
        return [site.pinned_result(0, "the target shape of Reshape is computed at run time")]
    return site.refuse("the target shape of Reshape is computed at run time")


class Regroup:
    """Walks both shapes from the left and cuts or joins axes so that every boundary that can be kept is."""

    def __init__(self, site: Site, axes: Sequence[LooseAxis], source: Sequence[Dim], target: Sequence[Dim]) -> None:
        self.site = site
        self.sizes, self.targets = monomials(source, target)
        self.queue = [(axis, size) for axis, size in zip(axes, self.sizes, strict=True) if size != Monomial(1)]

    def run(self) -> list[LooseAxis]:
        """The axes of the result."""
        tail = self._take_equal_tail()
        self.queue.reverse()
        result = [self._take(target) for target in self.targets] + tail
        for axis, _ in self.queue:
            self.site.pin(axis, "Reshape to a shape that is not known")
        return result

    def _take_equal_tail(self) -> list[LooseAxis]:
        """Axes that correspond at the end: what is before them corresponds too, even where its sizes are not known."""
        tail: list[LooseAxis] = []
        while self.targets:
            if self.targets[-1] == Monomial(1):
                self.targets.pop()
                tail.append(self.site.pinned("an axis of size 1"))
            elif self.queue and self.queue[-1][1] == self.targets[-1]:
                self.targets.pop()
                tail.append(self.queue.pop()[0])
            elif parts := self._last_axis_in_parts():
                tail += reversed(parts)
            else:
                break
        return tail[::-1]

    def _last_axis_in_parts(self) -> list[LooseAxis]:
        """The last axis of the source cut into the last ones of the target, if it is exactly those; else nothing."""
        size = self.queue[-1][1] if self.queue else Monomial(1)
        count, product = 0, Monomial(1)
        while size.is_number and count < len(self.targets) and product != size:
            count, product = count + 1, product.times(self.targets[-count - 1])
        if count < 2 or product != size:
            return []
        parts: list[LooseAxis] = []
        rest, _ = self.queue.pop()
        for k in range(count - 1, 0, -1):
            outer, rest = self._cut(rest, self.targets[-k - 1], reduce(Monomial.times, self.targets[-k:]))
            parts.append(outer)
        del self.targets[-count:]
        return [*parts, rest]

    def _take(self, wanted: Monomial) -> LooseAxis:
        parts: list[tuple[LooseAxis, Monomial]] = []
        while wanted != Monomial(1) and self.queue:
            axis, size = self.queue.pop()
            if (rest := wanted.divide(size)) is not None:
                parts.append((axis, size))
                wanted = rest
            elif (inner := size.divide(wanted)) is not None:
                outer_axis, inner_axis = self._cut(axis, wanted, inner)
                self.queue.append((inner_axis, inner))
                parts.append((outer_axis, wanted))
                wanted = Monomial(1)
            elif self.queue:
                following, more = self.queue.pop()
                self.queue.append((self._merge([(axis, size), (following, more)]), size.times(more)))
            else:
                for part, _ in parts:
                    self.site.pin(part, "Reshape cuts this axis at a place that is not known")
                return self.site.pin(axis, "Reshape cuts this axis at a place that is not known")
        return self._merge(parts) if parts else self.site.pinned("an axis of size 1")

    def _cut(self, axis: LooseAxis, outer: Monomial, inner: Monomial) -> tuple[LooseAxis, LooseAxis]:
        if isinstance(axis, int) or not (outer.is_number and inner.is_number):
            self.site.pin(axis, "Reshape cuts this axis into parts of dynamic size")
            label = self.site.pinned("part of an axis that is needed whole")
            return (axis, axis) if isinstance(axis, int) else (label, label)
        return self.site.labels.split_axis(axis, outer.number, inner.number)

    def _merge(self, parts: Sequence[tuple[LooseAxis, Monomial]]) -> LooseAxis:
        loose, size = parts[0]
        if len(parts) == 1:
            return loose
        result = self.site.labels.settled(loose)
        for other, more in parts[1:]:
            axis = self.site.labels.settled(other)
            if isinstance(result, int) and isinstance(axis, int):
                pass
            elif size.is_number and more.is_number:
                result = self.site.labels.outer(self.site.vector(result, size.number), self.site.vector(axis, more.number))
            else:
                for each in (result, axis):
                    self.site.pin(each, "Reshape joins this axis with one of dynamic size")
                result = self.site.pinned("an axis of dynamic size")
            size = size.times(more)
        return result


def shrink_reshape(edit: Edit) -> None:
    """Writes the new sizes into the constant target shape, or into the constant parts of one that is joined."""
    target = edit.integers(1, "shape")
    if target is not None:
        edit.set_integers(1, _shrunk(edit, target, 0), "shape")
        return
    for concat, index, start, sizes in joined_constants(edit.graph, edit.position):
        edit.at(concat).set_integers(index, _shrunk(edit, sizes, start))


def _shrunk(edit: Edit, target: list[int], start: int) -> list[int]:
    """The sizes from axis `start` on of what is left; 0 copies and -1 infers: both stay."""
    target = list(target)
    for place, size in enumerate(target):
        axis = start + place
        kept = edit.kept_output(0, axis)
        copied = edit.kept(0, axis) if size == 0 and not edit.attribute("allowzero", 0) else None
        if kept is not None and (size > 0 or (size == 0 and (copied is None or len(copied) != len(kept)))):
            target[place] = len(kept)
        elif kept is None and copied is not None:
            target[place] = edit.output_size(axis)
    return target
