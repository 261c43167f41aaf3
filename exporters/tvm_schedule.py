"""Schedules for TVM on processors: register tiles for contractions, vectors and threads for the rest.

As they are written, TVM's loops run 15 to 100 times slower than ONNX Runtime.  Start reading at `schedules`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import s_tir, tirx

from .tvm_loops import PAIRS, TILE
from .tvm_pairs import intrinsic
from .tvm_tiles import COPIES, WORTH_SHARING, Machine, Tile

WEIGHTS_IN_CACHE = 2**18
"""Bytes of packed weights that stay in the second-level cache while the positions pass by."""

NARROWEST = 4
"""Floats that are worth a vector where the channels do not fill a wider one."""

SHARES = 16
"""Turns of the outermost loops that are enough to share them between threads."""

UNROLLED = 4
"""Steps of a contraction's innermost sum that are written out."""

ORDERS = ("channels inside rows", "rows inside channels", "channels innermost")
"""What the tiles of a convolution are walked in, from the outside: rows and channels; channels and rows; channels last of all."""

KEPT = ("padded", "packed", "exponentials")
"""Blocks that are not computed anew wherever they are read: they are read many times, or are dear."""

Block = Any
Loop = Any


@dataclass(frozen=True)
class Walk:
    """What tuning may choose for a contraction; `order` counts in `ORDERS`, None leaves it to the size of the weights."""

    positions: int
    order: int | None = None
    unrolled: int = UNROLLED


def schedules(machine: Machine) -> Any:
    """The pass that schedules every loop function that has no schedule yet; a function that no rule fits stays as it is."""
    from tvm.s_tir import dlight

    class Default(dlight.ScheduleRule):  # type: ignore[misc]
        def apply(self, func: Any, target: Any, tunable: bool) -> Any:
            try:
                return scheduled(func, machine)
            except s_tir.ScheduleError:
                return None

    return dlight.ApplyDefaultSchedule(Default())


def scheduled(function: Any, machine: Machine, walk: Walk | None = None) -> Any:
    """A schedule of one loop function.  Raises tvm's ScheduleError where a rule does not fit."""
    schedule = s_tir.Schedule(function)
    inline(schedule)
    found = blocks(schedule)
    tiled = [block for block in found if TILE in schedule.get(block).annotations]
    paired = [block for block in found if PAIRS in schedule.get(block).annotations]
    behind = [each for block in (*tiled, *paired) for each in schedule.get_consumers(block)]
    behind += [each for block in paired for joined in schedule.get_consumers(block) for each in schedule.get_consumers(joined)]
    done = {schedule.get(each).name_hint for each in (*tiled, *paired, *behind)}
    others = [block for block in found if schedule.get(block).name_hint not in done]
    for block in tiled:
        contraction(schedule, block, machine, walk)
    for block in paired:
        paired_contraction(schedule, block, machine)
    for block in others:
        loop(schedule, block, machine)
    return schedule


def tile_of(function: Any) -> tuple[Tile, tuple[int, int], int] | None:
    """Of a function's contraction: the tile, the lengths of a row and of the innermost sum, the rank; None without one."""
    schedule = s_tir.Schedule(function)
    for block in blocks(schedule):
        statement = schedule.get(block)
        if TILE in statement.annotations:
            positions, lanes = (int(size) for size in statement.annotations[TILE])
            row = statement.writes[0].source.shape[-2]
            length = int(row) if isinstance(row, tirx.IntImm) else positions
            return (
                Tile(positions, lanes),
                (length, int(statement.iter_vars[-1].dom.extent)),
                len(statement.writes[0].source.shape),
            )
    return None


def blocks(schedule: Any) -> list[Block]:
    """The outermost blocks of a function, producers first."""
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def inline(schedule: Any) -> None:
    """Compute elementwise results where they are read, as far as TVM can; what is read as a window stays."""
    for block in blocks(schedule):
        if schedule.get(block).name_hint in KEPT or not schedule.get_consumers(block):
            continue
        try:
            schedule.compute_inline(block)
        except s_tir.ScheduleError:
            continue


# ---- contractions ---------------------------------------------------------------------------------


def contraction(schedule: Any, block: Block, machine: Machine, walk: Walk | None) -> None:
    """Sum a tile of positions and channels in registers, then hand it to the elementwise results behind it."""
    positions, lanes = (int(size) for size in schedule.get(block).annotations[TILE])
    walk = walk or Walk(positions)
    following = schedule.get_consumers(block)
    if following:
        schedule.set_scope(block, 0, "local")
        last = following[0]
    else:
        last = schedule.cache_write(block, 0, "local")
    loops = list(schedule.get_loops(block))
    spatial = len(schedule.get(block).writes[0].source.shape)
    *outer, row, channel = loops[:spatial]
    row, tile_row = schedule.split(row, [None, walk.positions])
    channel, tile_channel = schedule.split(channel, [None, lanes])
    order = _order(schedule, block, [outer, row, channel], walk)
    sums = [*loops[spatial:-1], *_split(schedule, loops[-1], walk.unrolled)]
    schedule.reorder(*order, *sums, tile_row, tile_channel)
    _share(schedule, block, order[:-1], WORTH_SHARING, machine)
    schedule.reverse_compute_at(last, order[-1], preserve_unit_loops=True)
    _tile(schedule, last, _channels(schedule, last), lanes, machine)
    schedule.unroll(sums[-1])
    _tile(schedule, block, lanes, lanes, machine)
    schedule.unannotate(block, TILE)
    _tile(schedule, schedule.decompose_reduction(block, sums[0]), lanes, lanes, machine)


def paired_contraction(schedule: Any, block: Block, machine: Machine) -> None:
    """Sum two inputs at a time for a tile of positions, join the halves, and hand them to the elementwise results behind."""
    positions, outputs = (int(size) for size in schedule.get(block).annotations[PAIRS])
    joined = schedule.get_consumers(block)[0]
    following = schedule.get_consumers(joined)
    last = following[0] if following else schedule.cache_write(joined, 0, "local")
    schedule.set_scope(block, 0, "local")
    if following:
        schedule.set_scope(joined, 0, "local")
    *outer, row, output, half, r, s, depth = schedule.get_loops(block)
    row, tile_row = schedule.split(row, [None, positions])
    sums = [r, s, *_split(schedule, depth, UNROLLED)]
    schedule.reorder(*outer, row, *sums, tile_row, output, half)
    _share(schedule, block, outer, WORTH_SHARING, machine)
    for each in (joined, last):
        schedule.reverse_compute_at(each, row, preserve_unit_loops=True)
    _tile(schedule, last, _channels(schedule, last), outputs, machine)
    *_, position, output, half = schedule.get_loops(joined)
    schedule.reorder(position, half, output)
    schedule.unroll(position)
    schedule.vectorize(output)
    schedule.vectorize(schedule.get_loops(schedule.decompose_reduction(joined, half))[-1])
    schedule.unroll(half)
    schedule.unroll(sums[-1])
    schedule.unannotate(block, PAIRS)
    *_, position, output, half = schedule.get_loops(schedule.decompose_reduction(block, r))
    schedule.unroll(position)
    schedule.vectorize(schedule.fuse(output, half))
    *_, position, output, _ = schedule.get_loops(block)
    schedule.unroll(position)
    schedule.tensorize(output, intrinsic(outputs))


def _order(schedule: Any, block: Block, loops: list[Any], walk: Walk) -> list[Loop]:
    """What the tiles are walked in: weights that outgrow the cache are read once, others for each row."""
    outer, row, channel = loops
    weight = schedule.get(block).reads[-1].source
    size = 4
    for extent in weight.shape:
        size *= int(extent)
    order = walk.order
    if order is None:
        depthwise = len(weight.shape) == 3 and len(outer) == 2
        order = 2 if depthwise else int(size > WEIGHTS_IN_CACHE)
    if order == 2 and outer:
        return [*outer, row, channel]
    return [*outer[:1], channel, *outer[1:], row] if order == 1 else [*outer, channel, row]


def _split(schedule: Any, loop: Loop, wished: int) -> list[Loop]:
    extent = int(schedule.get(loop).extent)
    return list(schedule.split(loop, [None, next(step for step in range(wished, 0, -1) if extent % step == 0)]))


def _channels(schedule: Any, block: Block) -> int:
    channels = schedule.get(block).writes[0].source.shape[-1]
    return int(channels) if isinstance(channels, tirx.IntImm) else 0


def _tile(schedule: Any, block: Block, channels: int, lanes: int, machine: Machine) -> None:
    """Unroll the positions and make the channels vectors, unless the last block of `channels` is not full.

    A vector of three registers, which LLVM handles badly, is written as three vectors.
    """
    *_, position, channel = schedule.get_loops(block)
    schedule.unroll(position)
    if not channels or (channels % lanes and channels > lanes):
        return
    width = math.gcd(min(channels, lanes), machine.floats)
    if width > 1:
        vectors, vector = schedule.split(channel, [None, width])
        schedule.unroll(vectors)
        schedule.vectorize(vector)


def _share(schedule: Any, block: Block, outer: list[Loop], least: int, machine: Machine) -> None:
    """Share the turns of outer loops between threads, if there are several and the statement runs `least` times or more."""
    extents = [schedule.get(each).extent for each in schedule.get_loops(block)]
    steps = math.prod(int(extent) if isinstance(extent, tirx.IntImm) else math.inf for extent in extents)
    if machine.shares(steps, least):
        schedule.parallel(schedule.fuse(*outer))


# ---- everything else ------------------------------------------------------------------------------


def loop(schedule: Any, block: Block, machine: Machine) -> None:
    """Vectors along the innermost axis, sums outside of it, threads along the outermost axes."""
    kinds = [variable.iter_type for variable in schedule.get(block).iter_vars]
    loops = list(schedule.get_loops(block))
    if len(kinds) != len(loops):
        return
    spatial = [each for each, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.DataPar]
    sums = [each for each, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.CommReduce]
    if not spatial or len(spatial) + len(sums) != len(loops):
        return
    vector = _vector(schedule, spatial, machine)
    if sums:
        schedule.reorder(*spatial, *sums, *vector)
    _share(schedule, block, _outermost(schedule, spatial), COPIES, machine)
    for each in vector:
        schedule.vectorize(each)
    if sums:
        first = schedule.decompose_reduction(block, sums[0])
        if vector:
            schedule.vectorize(schedule.get_loops(first)[-1])


def _outermost(schedule: Any, spatial: list[Loop]) -> list[Loop]:
    """The first loops, as many as keep all threads busy: an index of fused loops has to be divided again in each step."""
    turns = 1
    for count, each in enumerate(spatial, start=1):
        extent = schedule.get(each).extent
        turns *= int(extent) if isinstance(extent, tirx.IntImm) else 1
        if turns >= SHARES:
            return spatial[:count]
    return spatial


def _vector(schedule: Any, spatial: list[Loop], machine: Machine) -> list[Loop]:
    """Split whole vectors off the last loop, in place; nothing where they do not fit."""
    extent = schedule.get(spatial[-1]).extent
    lanes = _lanes(int(extent), machine) if isinstance(extent, tirx.IntImm) else 1
    if lanes == 1:
        return []
    spatial[-1], vector = schedule.split(spatial[-1], [None, lanes])
    return [vector]


def _lanes(extent: int, machine: Machine) -> int:
    """The largest part of the extent that fills up to four vectors, or a half or a quarter of one; 1 where there is none."""
    if machine.floats == 1:
        return 1
    whole = [count * machine.floats for count in (4, 3, 2, 1)]
    parts = [machine.floats // part for part in (2, 4) if machine.floats // part >= NARROWEST]
    return next((lanes for lanes in (*whole, *parts) if extent % lanes == 0), 1)
