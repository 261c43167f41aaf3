"""How large a register tile of a contraction is: a small model of a processor, from vector width and register count.

Start reading at `product_tile`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

UNITS = 2
"""Multiply-adds that begin in a cycle, and loads: true of most processors of the last ten years."""

LATENCY = 4
"""Cycles until a multiply-add can be added to again."""

MAXIMUM_POSITIONS = 16

WORTH_SHARING = 2**20
"""Multiply-adds of a contraction that are worth the start of threads: some ten microseconds; a start takes half of that."""

COPIES = 2**17
"""Elements of another loop that are worth it."""


@dataclass(frozen=True)
class Machine:
    """What a target looks like: floats in a vector, vector registers, and cores (0: not known)."""

    floats: int
    registers: int
    cores: int = 0

    def shares(self, steps: float, least: int) -> bool:
        """Whether threads share what takes so many steps, if `least` are worth their start."""
        return steps >= least and self.cores != 1


@dataclass(frozen=True)
class Tile:
    """Outputs that are summed in registers together: neighbouring positions (or rows) times neighbouring channels."""

    positions: int
    lanes: int


def product_tile(machine: Machine, width: int, channels: int) -> Tile:
    """The tile with the fewest cycles for each useful multiply-add, for rows of `width` outputs with `channels` channels."""
    tiles = [
        Tile(positions, vectors * machine.floats)
        for positions in range(1, min(width, MAXIMUM_POSITIONS) + 1)
        for vectors in range(1, machine.registers // 2 + 1)
        if positions * vectors + vectors + 1 <= machine.registers
    ]
    return min(tiles, key=lambda tile: (_cycles(machine, tile, width, channels), -tile.positions))


def _cycles(machine: Machine, tile: Tile, width: int, channels: int) -> float:
    vectors = tile.lanes / machine.floats
    steps = tile.positions * vectors
    weights = vectors  # from the second-level cache: one load a cycle
    cycles = max(steps / UNITS, tile.positions / UNITS + weights, LATENCY)
    done = -(-width // tile.positions) * -(-channels // tile.lanes)
    return done * cycles / (width * channels)


def within(machine: Machine, channels: int) -> Machine:
    """The machine with the widest vectors that a group of so many channels fills: a tile must not cross groups."""
    floats = machine.floats
    while channels % floats:
        floats //= 2
    return replace(machine, floats=floats)


def depthwise_tile(machine: Machine, width: int, channels: int) -> Tile:
    """The tile of a depthwise convolution: half of the registers, so that inputs and weights find room."""
    vectors = min(2, -(-channels // machine.floats))
    if -(-channels // machine.floats) % vectors:
        vectors = 1
    positions = max(1, min(width, machine.registers // 2 // vectors))
    while positions > 2 and -(-width // positions) * positions > 1.1 * width:
        positions -= 1
    return Tile(positions, vectors * machine.floats)


def machine_of(target: Any) -> Machine:
    """The vector unit of a TVM target, by the features that LLVM knows of it, and its cores."""
    from tvm.target.codegen import target_has_features

    if str(target.kind) == "c":
        return Machine(1, 16)  # C has no vectors; its compiler may make some
    features = {"avx512f": Machine(16, 32), "avx2": Machine(8, 16), "neon": Machine(4, 32)}
    found = next((machine for feature, machine in features.items() if target_has_features(feature, target)), Machine(4, 16))
    return replace(found, cores=int(target.attrs.get("num-cores", 0)))
