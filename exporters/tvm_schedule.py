"""Default schedules for TVM on processors: register tiles for contractions, vectors and threads for the rest.

Without a schedule TVM runs the loops as they are written, 15 to 100 times slower than ONNX Runtime.  Start reading at `schedules`.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir, tirx

from .tvm_operators import TILE
from .tvm_tiles import Machine

WEIGHTS_IN_CACHE = 2**18
"""Bytes of packed weights that stay in the second-level cache while the positions pass by."""

UNROLLED = 4
"""Steps of a contraction's innermost sum that are written out."""

SMALL_WINDOW = 32
"""Windows of up to this many elements are written out."""

Block = Any
Loop = Any


def schedules(machine: Machine) -> Any:
    """The pass that schedules every loop function that has no schedule yet."""
    from tvm.s_tir import dlight

    class Default(dlight.ScheduleRule):  # type: ignore[misc]
        def apply(self, func: Any, target: Any, tunable: bool) -> Any:
            return scheduled(s_tir.Schedule(func), machine)

    return dlight.ApplyDefaultSchedule(Default())


def scheduled(schedule: Any, machine: Machine) -> Any:
    """Schedule the loops of one function."""
    inline(schedule)
    found = blocks(schedule)
    tiled = [block for block in found if TILE in schedule.get(block).annotations]
    for block in tiled:
        contraction(schedule, block)
    epilogues = {schedule.get(block).name_hint for block in found if tiled and not schedule.get_consumers(block)}
    for block in found:
        name = schedule.get(block).name_hint
        if name not in epilogues and TILE not in schedule.get(block).annotations:
            loop(schedule, block, machine)
    return schedule


def blocks(schedule: Any) -> list[Block]:
    """The blocks of a function, producers first."""
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def inline(schedule: Any) -> None:
    """Compute elementwise results where they are read, as far as TVM can; what is read as a window stays."""
    for block in blocks(schedule):
        if schedule.get(block).name_hint == "padded" or not schedule.get_consumers(block):
            continue
        try:
            schedule.compute_inline(block)
        except s_tir.ScheduleError:
            continue


# ---- contractions ---------------------------------------------------------------------------------


def contraction(schedule: Any, block: Block) -> None:
    """Sum a tile of positions and channels in registers, then hand it to the elementwise results behind it."""
    positions, lanes = (int(size) for size in schedule.get(block).annotations[TILE])
    following = schedule.get_consumers(block)
    if following:
        schedule.set_scope(block, 0, "local")
        last = following[0]
    else:
        last = schedule.cache_write(block, 0, "local")
    iterators = [str(loop.iter_type) for loop in schedule.get(block).iter_vars]
    spatial = sum(kind == iterators[0] for kind in iterators)
    *outer, row, channel = (loops := list(schedule.get_loops(block)))[:spatial]
    sums = loops[spatial:]
    row, tile_row = schedule.split(row, [None, positions])
    channel, tile_channel = schedule.split(channel, [None, lanes])
    order = _order(schedule, block, outer, row, channel)
    sums = [*sums[:-1], *_split(schedule, sums[-1])]
    schedule.reorder(*order, *sums, tile_row, tile_channel)
    schedule.parallel(schedule.fuse(*order[:-1]))
    schedule.reverse_compute_at(last, order[-1], preserve_unit_loops=True)
    _vectors(schedule, schedule.get_loops(last)[-2:], schedule.get(last).writes[0].source.shape[-1], lanes)
    schedule.unroll(sums[-1])
    _vectors(schedule, schedule.get_loops(block)[-2:], lanes, lanes)
    schedule.unannotate(block, TILE)
    first = schedule.decompose_reduction(block, sums[0])
    _vectors(schedule, schedule.get_loops(first)[-2:], lanes, lanes)


def _order(schedule: Any, block: Block, outer: list[Loop], row: Loop, channel: Loop) -> list[Loop]:
    """What the tiles are walked in: weights that outgrow the cache are read once, others for each row."""
    weight = schedule.get(block).reads[-1].source
    size = 4
    for extent in weight.shape:
        size *= int(extent)
    if len(weight.shape) == 3 and len(outer) == 2:
        return [*outer, row, channel]
    if size > WEIGHTS_IN_CACHE:
        return [*outer[:1], channel, *outer[1:], row]
    return [*outer, channel, row]


def _split(schedule: Any, loop: Loop) -> list[Loop]:
    extent = int(schedule.get(loop).extent)
    return list(schedule.split(loop, [None, next(step for step in range(UNROLLED, 0, -1) if extent % step == 0)]))


def _vectors(schedule: Any, loops: list[Loop], channels: Any, lanes: int) -> None:
    """Unroll the positions and make the channels a vector, unless the last block is not full."""
    if not isinstance(channels, int):
        channels = int(channels) if isinstance(channels, tirx.IntImm) else 0
    schedule.unroll(loops[0])
    if channels and (channels % lanes == 0 or channels < lanes):
        schedule.vectorize(loops[1])


# ---- everything else ------------------------------------------------------------------------------


def loop(schedule: Any, block: Block, machine: Machine) -> None:
    """Vectors along the innermost axis, sums outside of it, threads along the outermost axes."""
    statement = schedule.get(block)
    loops = list(schedule.get_loops(block))
    kinds = [variable.iter_type for variable in statement.iter_vars]
    if len(kinds) != len(loops) or not loops:
        return
    spatial = [each for each, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.DataPar]
    sums = [each for each, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.CommReduce]
    if len(spatial) + len(sums) != len(loops) or not spatial:
        return
    inner = []
    if len(spatial) > 1 or not sums:
        extent = schedule.get(spatial[-1]).extent
        lanes = _lanes(int(extent), machine) if isinstance(extent, tirx.IntImm) else 1
        if lanes > 1:
            rest, vector = schedule.split(spatial[-1], [None, lanes])
            spatial[-1:], inner = [rest], [vector]
    if sums:
        schedule.reorder(*spatial, *sums, *inner)
    if len(spatial) > 1:
        schedule.parallel(schedule.fuse(*spatial))
    if inner:
        schedule.vectorize(inner[0])
    if sums:
        first = schedule.decompose_reduction(block, sums[0])
        if inner:
            schedule.vectorize(schedule.get_loops(first)[-1])


def _lanes(extent: int, machine: Machine) -> int:
    """The largest part of the extent that fills whole vectors, of up to four; 1 where there is none."""
    return next((count * machine.floats for count in (4, 3, 2, 1) if extent % (count * machine.floats) == 0), 1)
