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
        (ND, "int64[2,1] i = {2, 2}"),
        (ND, "int64[2,1] i = {1, -1}"),
        (ND.replace("ScatterND(", "ScatterND<reduction = \"add\">("), "int64[2,1] i = {0, 1}"),
        (ELEMENTS, f"int64[2,8,6] i = {{{', '.join(['0', *['1'] * 95])}}}"),
        ("p = Slice(b, zero, two, one)\n q = Slice(p, zero, two, zero)\n s = ScatterElements<axis = 0>(a, i, q)",
         f"int64[1] one = {{1}}, int64[2,2,6] i = {{{', '.join(['0'] * 12 + ['1'] * 12)}}}"),
    ],
    ids=["one twice", "from the end", "added", "not in line", "a part of the rows"],
)  # fmt: skip
def test_what_is_no_stretch_stays(node: str, indices: str) -> None:
    model = written(node, ROWS + indices)
    assert any(each.op_type.startswith("Scatter") for each in graphprune.load(model).nodes)


@pytest.mark.parametrize("rows", [[0, 2], [1, 0], [3, 1]])
def test_rows_with_gaps_or_turned_round(rows: list[int]) -> None:
    model = written(ND, f"{ROWS} int64[2,1] i = {{{rows[0]}, {rows[1]}}}")
    operators = [node.op_type for node in graphprune.load(model).nodes]
    assert "ScatterND" not in operators
    assert "Gather" in operators
    assert groups(model) == {"w1:0": 8}
    halve(model)


def grid(*places: list[int]) -> str:
    """Indices of ScatterND as torch's older exporter writes them: all that some places along each of the first axes make."""
    indices = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1)
    return f"int64[{','.join(map(str, indices.shape))}] i = {{{', '.join(map(str, indices.ravel()))}}}"


def partial(first: int, end: int, places: tuple[list[int], ...], columns: str = "") -> ModelProto:
    """`y[:, places] = conv(y[:, first:end])`, perhaps of some columns."""
    return net(f"""
        partial (float[2,3,6] x) => (float[2,2,6] y)
        <float[8,3,1] w1, float[3,3,3] w2, float[2,8,1] w3, int64[1] first = {{{first}}}, int64[1] end = {{{end}}},
         int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] four = {{4}}, {grid(*places)}> {{
            a = Conv(x, w1)
            p = Slice(a, first, end, one)
            b = Conv<pads = [1,1]>(p, w2)
            u = {f"Slice(b, {columns}, two)" if columns else "Identity(b)"}
            s = ScatterND(a, i, u)
            y = Conv(s, w3)
        }}""")


@pytest.mark.parametrize("places", [[0, 1, 2], [2, 3, 4], [5, 6, 7], [0, 3, 6], [7, 1, 4]])
def test_channels_at_the_places_of_a_grid(places: list[int]) -> None:
    """A stretch, one with a step, and a list of channels."""
    model = partial(2, 5, ([0, 1], places))
    assert sum(groups(model).values()) > 8
    halve(model)


def test_some_columns_of_some_channels() -> None:
    model = partial(0, 3, ([0, 1], [0, 1, 2], [2, 3]), columns="two, four")
    assert not any(node.op_type == "ScatterND" for node in graphprune.load(model).nodes)
    assert sum(groups(model).values()) == 8
    halve(model)


@pytest.mark.parametrize(("limit", "free"), [("zero", True), ("two", False)])
def test_indices_that_count_the_samples(limit: str, free: bool) -> None:
    """As torch's older exporter writes it for a dynamic batch; a Range of another size than the batch is left alone."""
    model = net(f"""
        partial (float[N,3,6] x) => (float[N,2,6] y)
        <float[8,3,1] w1, float[3,3,3] w2, float[2,8,1] w3, int64[1] first = {{0}}, int64[1] three = {{3}}, int64[1] one = {{1}},
         int64 zero = {{0}}, int64 two = {{2}}, int64 step = {{1}}, int64[2] upright = {{-1,1}}, int64[1] last = {{-1}},
         int64[3] channels = {{0,1,2}}> {{
            a = Conv(x, w1)
            p = Slice(a, first, three, one)
            b = Conv<pads = [1,1]>(p, w2)
            sizes = Shape(a)
            n = Gather<axis = 0>(sizes, {limit})
            count = Range(zero, n, step)
            samples = Reshape(count, upright)
            both = Add(samples, channels)
            target = Shape(both)
            i0 = Expand(samples, target)
            j0 = Unsqueeze(i0, last)
            i1 = Expand(channels, target)
            j1 = Unsqueeze(i1, last)
            i = Concat<axis = -1>(j0, j1)
            s = ScatterND(a, i, b)
            y = Conv(s, w3)
        }}""")
    assert any(node.op_type == "ScatterND" for node in graphprune.load(model).nodes) != free
    if free:
        assert sum(groups(model).values()) == 11
        halve(model)


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
