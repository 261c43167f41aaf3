"""Keep short Softmaxes of ONNX Runtime from being computed in place.

In place, rows of up to 100 values take up to 1.6 times as long: each is read while the last store of the row before it, a masked
one, is still under way.  ONNX Runtime reuses the input's memory where it can tell that both shapes are equal, which the constant
Reshapes of a normalised graph let it tell more often than those of the original.  A dimension's name is all there is to say
otherwise, and it asserts nothing: two names may stand for one size.  (Measured, docs/decisions/0031-softmax-apart.md.)  Start
reading at `keep_apart`.
"""

from __future__ import annotations

from onnx import ModelProto

from graphprune.graph import attributes, operator_name

VECTOR = 16
"""Values of float32 in the widest vector: rows of whole vectors need no masked store."""

LONG = 128
"""From here on the stall of a row is small beside the row, and a buffer of its own costs more than that."""


def keep_apart(model: ModelProto) -> None:
    """Give an unknown size of each short Softmax's result a name of its own, in place."""
    values = {value.name: value for value in model.graph.value_info}
    for node in model.graph.node:
        value = values.get(node.output[0]) if operator_name(node) == "Softmax" else None
        if value is None:
            continue
        dims = value.type.tensor_type.shape.dim
        axis = attributes(node).get("axis", -1)
        if not dims or axis not in (-1, len(dims) - 1) or not _short(dims[-1].dim_value):
            continue
        named = next((dim for dim in dims if dim.dim_param), None)
        if named is not None:
            named.dim_param = f"{named.dim_param} of {value.name}"


def _short(row: int) -> bool:
    """Whether rows of this length (0: unknown) are slow in place."""
    return row < LONG and row % VECTOR != 0
