"""Products of sizes, some of them symbolic: enough algebra to follow a Reshape with dynamic dimensions.

Start reading at `monomials`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from .graph import Dim


@dataclass(frozen=True)
class Monomial:
    """An integer times a product of symbols."""

    number: int
    symbols: tuple[str, ...] = ()

    @property
    def is_number(self) -> bool:
        """Whether no symbol is left."""
        return not self.symbols

    def times(self, other: Monomial) -> Monomial:
        """The product."""
        return Monomial(self.number * other.number, tuple(sorted(self.symbols + other.symbols)))

    def divide(self, other: Monomial) -> Monomial | None:
        """The exact quotient, or None where there is none."""
        rest = Counter(self.symbols)
        rest.subtract(other.symbols)
        if other.number == 0 or self.number % other.number or any(count < 0 for count in rest.values()):
            return None
        return Monomial(self.number // other.number, tuple(sorted(rest.elements())))

    @property
    def name(self) -> Dim:
        """The number, or a name such as `8*N` for the size of an axis, as torch's exporter writes it."""
        factors = [str(self.number)] if self.number != 1 else []
        return "*".join([*factors, *self.symbols]) if self.symbols else self.number


def monomials(source: Sequence[Dim], target: Sequence[Dim]) -> tuple[list[Monomial], list[Monomial]]:
    """Both shapes of a Reshape as monomials.

    A single unknown size of the target is what is left of the source; every other unknown size becomes a symbol of its
    own, which matches nothing else.
    """
    left = [monomial(dim, f"source {k}") for k, dim in enumerate(source)]
    right = [monomial(dim, f"target {k}") for k, dim in enumerate(target)]
    known = {symbol for size in left for symbol in size.symbols}
    unknown = [k for k, size in enumerate(right) if not set(size.symbols) <= known]
    if len(unknown) == 1:
        rest = reduce(Monomial.times, (size for k, size in enumerate(right) if k not in unknown), Monomial(1))
        quotient = reduce(Monomial.times, left, Monomial(1)).divide(rest)
        if quotient is not None:
            right[unknown[0]] = quotient
    return left, right


def monomial(dim: Dim, unknown: str) -> Monomial:
    """A size, or the product that its name stands for; a symbol of its own where it is not known."""
    if not isinstance(dim, str):
        return Monomial(1, (unknown,)) if dim is None else Monomial(dim)
    first, *rest = dim.split("*")
    number = int(first) if rest and first.isdecimal() else 0
    symbols = rest if number else [first, *rest]
    return Monomial(number or 1, tuple(sorted(symbols))) if all(symbols) else Monomial(1, (dim,))
