"""In what steps channel counts change, so that a smaller network is a faster one.  Start reading at `steps_of`."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from .errors import UsageError
from .graph import attributes
from .groups import Group
from .inference import Analysis

STEPS = (16, 8, 4)

SMALLEST = 2 * STEPS[-1]
"""Smaller groups have no alignment."""

IMAGE = 4
"""The rank of what has a blocked layout."""

WHOLE_BLOCKS = {"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"}
"""Operators that ONNX Runtime's blocked layout serves only where channels fill its blocks.

Convolutions with groups and a Concat of channels are others."""


Steps = NDArray[np.int64]


def steps_of(analysis: Analysis, groups: Sequence[Group], align: int | str) -> tuple[Steps, Steps]:
    """The step of each group's size, and the finer ones for targets that are out of reach with these: without whole blocks.

    Raises UsageError for an `align` that is neither `auto` nor a positive number.
    """
    finer = np.array([1 if group in analysis.fewest else _step(group, align) for group in groups], np.int64)
    steps = finer.copy()
    if align == "auto":
        blocked = _in_whole_blocks(analysis)
        for k, group in enumerate(groups):
            if group not in analysis.fewest and blocked[group.labels].any():
                steps[k] = _automatic(group.size, 2)
    return steps, finer


def _step(group: Group, align: int | str) -> int:
    if align == "auto":
        return _in_units(group, _automatic(group.size, 4))
    if isinstance(align, str) and not align.isdigit():
        raise UsageError(f"--align {align!r}: give 'auto' or a number")
    if int(align) < 1:
        raise UsageError(f"--align {align}: must be at least 1")
    return _in_units(group, int(align))


def _automatic(size: int, parts: int) -> int:
    """For ONNX Runtime's CPU kernels: blocks of 16 channels, and counts that are no multiple of 4 leave the blocked layout.

    (Measured, docs/decisions/0003-alignment.md.)  Small groups get smaller steps, so that a quarter of a group can leave, half
    where part of a block costs more than it saves; there the width of each convolution group counts, not that of the axis.
    """
    return next((step for step in STEPS if size >= parts * step), STEPS[-1]) if size >= SMALLEST else 1


def _in_units(group: Group, step: int) -> int:
    """The step of a group's size with which every axis that it produces stays a multiple of a step."""
    producers = [member for member in group.members if member.role == "producer"] or list(group.members)
    repeats = min(int(np.bincount(member.units).max()) for member in producers)
    return max(1, min(step // gcd(step, repeats), group.size))


def _in_whole_blocks(analysis: Analysis) -> NDArray[np.bool_]:
    """For every label whether a pooling, a Concat or a convolution with groups reads or writes it; of a product the inner one."""
    ledger = analysis.ledger
    found = np.zeros(len(ledger.labels), dtype=bool)
    for node in analysis.graph.nodes:
        for name in _blocked(node):
            axes = list(ledger.values.get(name) or ())
            if len(axes) == IMAGE and not isinstance(axes[1], int):
                found[ledger.labels.innermost(axes[1])] = True
    return found


def _blocked(node: NodeProto) -> Sequence[str]:
    """The values of a node whose channels have to fill blocks, if their rank is that of images."""
    if node.op_type in WHOLE_BLOCKS or (node.op_type == "Conv" and attributes(node).get("group", 1) > 1):
        return node.input[0], node.output[0]
    if node.op_type == "Concat" and attributes(node)["axis"] in (1, 1 - IMAGE):
        return *node.input, node.output[0]
    return ()
