"""What the numbers of quantised weights stand for: criteria rank channels by real values, never by raw integers.

Rules note how a quantised initializer is read (`Ledger.numbers`, `graphprune.quantization`).  Start reading at `Scaled.real`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .graph import Array

Reals = NDArray[np.float32]
Constants = Callable[[str], Array | None]
"""The value of an initializer by its name; None where there is none that is fixed."""


class Numbers(Protocol):
    """How the numbers of one initializer are read."""

    def real(self, numbers: Array, constant: Constants) -> Reals:
        """What the numbers stand for, of the same shape (packed ones: with one element for each number in the last axis)."""


@dataclass(frozen=True)
class Scaled:
    """(number - zero) * scale, as DequantizeLinear has it (ONNX opset 21): for all, along `axis`, or for each block of it.

    `scale` and `zero` are names of values; one that is empty, or computed at run time, counts as 1 or 0.
    """

    scale: str
    zero: str
    axis: int
    block: int = 0

    def real(self, numbers: Array, constant: Constants) -> Reals:
        """As the class says; numbers and result have the shape of the weight."""
        scale, zero = (self._spread(constant(name) if name else None, numbers) for name in (self.scale, self.zero))
        result = np.array(numbers, np.float32)
        result -= 0 if zero is None else zero
        result *= 1 if scale is None else scale
        return result

    def stored(self, real: Array, dtype: np.dtype[Any], constant: Constants) -> Array:
        """The numbers of an integer type that stand for real values best, as QuantizeLinear rounds (ONNX opset 21)."""
        scale, zero = (self._spread(constant(name) if name else None, real) for name in (self.scale, self.zero))
        numbers = np.array(real, np.float64)
        if scale is not None:
            np.divide(numbers, scale, out=numbers, where=scale != 0)
        numbers = np.rint(numbers) + (0 if zero is None else zero)
        return np.asarray(np.clip(numbers, np.iinfo(dtype).min, np.iinfo(dtype).max)).astype(dtype)

    def fitted(self, real: Array, numbers: Array, constant: Constants, before: Constants) -> Reals:
        """The scales with which real values take the range that `numbers` took, which need not be all of their type.

        `constant` gives scales and zero points as they are for `real`, `before` as they were for `numbers`.
        """
        zero = self._spread(before(self.zero) if self.zero else None, numbers)
        reach = np.asarray(numbers, np.float64) - (0 if zero is None else zero)
        low, high = min(reach.min(), -1.0), max(reach.max(), 1.0)
        old = np.asarray(constant(self.scale))
        others = tuple(axis for axis in range(real.ndim) if old.size == 1 or axis != self.axis)
        needed = np.maximum(real.max(axis=others) / high, real.min(axis=others) / low).reshape(old.shape)
        return np.where(needed > 0, needed, old).astype(old.dtype)

    def _spread(self, values: Array | None, numbers: Array) -> Reals | None:
        """Scales or zero points in a shape that is broadcast to that of the numbers."""
        if values is None or values.size == 1 or not self.block:
            shape = [-1 if axis == self.axis else 1 for axis in range(numbers.ndim)]
            return None if values is None else np.asarray(values, np.float32).reshape(shape)
        spread = np.repeat(np.asarray(values, np.float32), self.block, self.axis)
        return spread[tuple(map(slice, numbers.shape))]


@dataclass(frozen=True)
class Packed:
    """Numbers of some bits side by side in bytes, the lowest first: [N, blocks, bytes], as MatMulNBits of ONNX Runtime has it.

    There is one scale for each block; zero points are packed along the blocks, or of the scales' type, or 2 ** (bits - 1).
    """

    scale: str
    zero: str
    bits: int

    def real(self, numbers: Array, constant: Constants) -> Reals:
        """[N, blocks, bytes] -> [N, blocks, block size]."""
        rows, blocks, _ = numbers.shape
        scale, zero = constant(self.scale), constant(self.zero) if self.zero else None
        result = unpacked(numbers, self.bits).astype(np.float32)
        result -= 2 ** (self.bits - 1) if zero is None else self._points(zero, rows, blocks)
        result *= 1 if scale is None else np.asarray(scale, np.float32).reshape(rows, blocks, 1)
        return result

    def _points(self, zero: Array, rows: int, blocks: int) -> Reals:
        """[N, blocks, 1]: the zero points."""
        points = unpacked(zero.reshape(rows, -1), self.bits)[:, :blocks] if zero.dtype == np.uint8 else zero
        return np.asarray(points, np.float32).reshape(rows, blocks, 1)


def unpacked(numbers: Array, bits: int) -> NDArray[np.uint8]:
    """The numbers of 1, 2, 4 or 8 bits that stand side by side in the bytes of the last axis."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    apart = (np.asarray(numbers, np.uint8)[..., None] >> shifts) & np.uint8(2**bits - 1)
    return apart.reshape(*numbers.shape[:-1], -1)
