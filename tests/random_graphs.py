"""Random networks out of many operator kinds, for the property test.

A `Builder` (network_builder.py) keeps a list of values with known shapes and appends nodes that fit them.  Hypothesis draws
every choice, so a failing network shrinks to a small one.  Axis 1 is the channel axis of whatever operator wants one, also after
a Transpose put another axis there: the analysis may not rely on layouts.

Start reading at `networks`; the operators are in random_nodes.py, random_layers.py and random_movement.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from hypothesis import strategies as st
from network_builder import BATCH, Builder, Draw
from onnx import ModelProto
from random_layers import conv, matmul
from random_nodes import KINDS


def _head(b: Builder, name: str) -> str:
    """A layer that reads all of a value, or all of one axis, so that there is something to prune."""
    n, *rest = b.shapes[name]
    if len(rest) == 1 and b.coin():
        name = b.add("Relu", [b.add("Gemm", [name, b.weight(rest[0], 5)], (n, 5))], (n, 5))
        rest = [5]
    kind = b.choose(["all", "all", "channels", "last"])
    if kind == "channels" and len(rest) > 1:
        return b.add("Conv", [name, b.weight(3, rest[0], *[1] * (len(rest) - 1))], (n, 3, *rest[1:]))
    if kind == "last" or prod(rest) > 1024:
        return b.add("MatMul", [name, b.weight(rest[-1], 3)], (n, *rest[:-1], 3))
    flat = b.add("Flatten", [name], (n, prod(rest))) if len(rest) > 1 else name
    return b.add("Gemm", [flat, b.weight(prod(rest), 3), b.weight(3)], (n, 3))


@dataclass
class Network:
    """A random network and how it can be masked."""

    model: ModelProto
    silenced: bool
    summed: bool


@st.composite
def networks(draw: Draw, least: int = 2, most: int = 12) -> Network:
    """A random network."""
    b = Builder(draw)
    b.shapes["x0"] = draw(st.sampled_from([(BATCH, 3, 6, 6), (BATCH, 4, 4, 8), (BATCH, 5, 6), (BATCH, 3, 8, 4)]))
    if b.choose([False, False, True]):
        b.shapes["x1"] = b.shapes["x0"]
    (conv if len(b.shapes["x0"]) == 4 or b.coin() else matmul)(b)
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=least, max_size=most)):
        kind(b)
    read = {name for node in b.nodes for name in node.input}
    leaves = [name for name in b.shapes if name not in read][-3:]
    outputs = [_head(b, name) for name in leaves]
    return Network(b.model(outputs), b.silenced, b.summed)
