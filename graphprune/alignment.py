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

IMAGE = 4
"""The rank of what has a blocked layout."""

WHOLE_BLOCKS = {"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"}
"""Operators that ONNX Runtime's blocked layout serves only where channels fill its blocks.

Convolutions with groups and a Concat of channels are others."""


def steps_of(analysis: Analysis, groups: Sequence[Group], align: int | str) -> NDArray[np.int64]:
    """The step of each group's size.  Raises UsageError for an `align` that is neither `auto` nor a positive number."""
    return _steps(analysis, groups, align, _in_whole_blocks(analysis))


def finer_steps_of(analysis: Analysis, groups: Sequence[Group], align: int | str) -> NDArray[np.int64]:
    """The same without regard to who needs whole blocks, for targets that are out of reach with them."""
    return _steps(analysis, groups, align, np.zeros(len(analysis.ledger.labels), dtype=bool))


def _steps(analysis: Analysis, groups: Sequence[Group], align: int | str, blocked: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.array([1 if group in analysis.fewest else _step(group, align, blocked) for group in groups], np.int64)


def _step(group: Group, align: int | str, blocked: NDArray[np.bool_]) -> int:
    if align == "auto":
        return _automatic(group, bool(blocked[group.labels].any()))
    if isinstance(align, str) and not align.isdigit():
        raise UsageError(f"--align {align!r}: give 'auto' or a number")
    if int(align) < 1:
        raise UsageError(f"--align {align}: must be at least 1")
    return _in_units(group, int(align))


def _automatic(group: Group, in_blocks: bool) -> int:
    """For ONNX Runtime's CPU kernels: blocks of 16 channels, and counts that are no multiple of 4 leave the blocked layout.

    (Measured, docs/decisions/0003-alignment.md.)  Small groups get smaller steps, so that a quarter of a group can leave; half of
    it where part of a block costs more than it saves.  There the width of each convolution group counts, not that of the axis.
    """
    if group.size < 2 * STEPS[-1]:
        return 1
    parts = 2 if in_blocks else 4
    step = next((step for step in STEPS if group.size >= parts * step), STEPS[-1])
    return step if in_blocks else _in_units(group, step)


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
