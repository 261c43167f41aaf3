"""Stretches that are written anew, and repeats for each sample: the forms in which channels can leave."""

from __future__ import annotations

import numpy as np
import pytest
from halving import groups, halve
from nets import net
from onnx import ModelProto

import graphprune
from graphprune.runtime import run


def written(node: str, constants: str) -> ModelProto:
    """Part of eight channels (or of four rows) is computed anew."""
    return net(f"""
        written (float[4,8,6] x) => (float[4,2,6] y)
        <float[8,8,1] w1, float[8,8,1] w2, float[2,8,1] w3, {constants}> {{
            a = Conv(x, w1)
            b = Conv(a, w2)
            {node}
            y = Conv(s, w3)
        }}""")


ND = "p = Slice(b, zero, two, zero)\n s = ScatterND(a, i, p)"
ELEMENTS = "p = Slice(b, zero, two, zero)\n s = ScatterElements<axis = 0>(a, i, p)"
ROWS = "int64[1] zero = {0}, int64[1] two = {2}, "


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("operator", ["ScatterND", "ScatterElements"])
def test_rows_that_are_written_anew(operator: str, first: int) -> None:
    rows = [first, first + 1]
    indices = rows if operator == "ScatterND" else np.repeat(rows, 48).tolist()
    shape = "2,1" if operator == "ScatterND" else "2,8,6"
    model = written(ND if operator == "ScatterND" else ELEMENTS, f"{ROWS} int64[{shape}] i = {{{', '.join(map(str, indices))}}}")
    operators = [node.op_type for node in graphprune.load(model).nodes]
    assert operator not in operators
    assert operators.count("Slice") == (3 if first == 1 else 2)
    assert groups(model) == {"w1:0": 8}
    halve(model)


@pytest.mark.parametrize(
    ("node", "indices"),
    [
        (ND, "int64[2,1] i = {0, 2}"),
        (ND, "int64[2,1] i = {1, 0}"),
        (ND.replace("ScatterND(", "ScatterND<reduction = \"add\">("), "int64[2,1] i = {0, 1}"),
        (ELEMENTS, f"int64[2,8,6] i = {{{', '.join(['0', *['1'] * 95])}}}"),
        ("p = Slice(b, zero, two, one)\n q = Slice(p, zero, two, zero)\n s = ScatterElements<axis = 0>(a, i, q)",
         f"int64[1] one = {{1}}, int64[2,2,6] i = {{{', '.join(['0'] * 12 + ['1'] * 12)}}}"),
    ],
    ids=["with a gap", "turned round", "added", "not in line", "a part of the rows"],
)  # fmt: skip
def test_what_is_no_stretch_stays(node: str, indices: str) -> None:
    model = written(node, ROWS + indices)
    assert any(each.op_type.startswith("Scatter") for each in graphprune.load(model).nodes)


def test_channels_that_are_computed_from_some_of_them() -> None:
    """`y[:, :3] = conv(y[:, :3])`, as torch's newer exporter writes it."""
    model = net("""
        partial (float[2,3,6] x) => (float[2,2,6] y)
        <float[8,3,1] w1, float[3,3,3] w2, float[2,8,1] w3, int64[1] zero = {0}, int64[1] three = {3}, int64[1] one = {1},
         int64[3,1] i = {0, 1, 2}> {
            a = Conv(x, w1)
            p = Slice(a, zero, three, one)
            b = Conv<pads = [1,1]>(p, w2)
            u = Transpose<perm = [1,0,2]>(b)
            t = Transpose<perm = [1,0,2]>(a)
            s = ScatterND(t, i, u)
            r = Transpose<perm = [1,0,2]>(s)
            y = Conv(r, w3)
        }""")
    assert sum(groups(model).values()) == 11
    halve(model)


@pytest.mark.parametrize("repeats", ["b, one, one", "one, b, one"])
def test_queries_that_are_repeated_by_tile(repeats: str) -> None:
    """Axes of size 1 alone are repeated."""
    model = net(f"""
        repeated (float[B,1,4] x) => (float[U,V,2] y)
        <float[1,1,4] queries, float[4,8] w1, float[8,2] w2, int64[1] zero = {{0}}, int64[1] one = {{1}}> {{
            s = Shape(x)
            b = Gather(s, zero)
            t = Concat<axis = 0>({repeats})
            q = Tile(queries, t)
            a = MatMul(q, w1)
            r = Relu(a)
            y = MatMul(r, w2)
        }}""")
    assert "Tile" not in [node.op_type for node in graphprune.load(model).nodes]
    assert groups(model) == {"w1:1": 8, "w1:0": 4}
    result = halve(model)
    inputs = {"x": np.random.default_rng(0).normal(size=(3, 1, 4)).astype(np.float32)}
    assert run(result.model, inputs)["y"].shape == run(model, inputs)["y"].shape
