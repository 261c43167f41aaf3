"""Attention with one matrix for each head of each sample, [(h*B), T, d]: heads may leave where the batch is dynamic."""

from __future__ import annotations

import pytest
from halving import groups, halve, shapes
from nets import net, operators
from onnx import ModelProto

import graphprune

WEIGHTS = "float[12,24] q, float[12,24] k, float[12,24] v, float[24,5] o"

APART = "int64[4] apart = {-1,5,6,4}, int64[3] joined = {-1,5,4}, int64[4] parted = {-1,6,5,4}, int64[3] back = {-1,5,24}"


def split(name: str, perm: str = "0,2,1,3") -> str:
    return f"""
        {name}0 = MatMul(x, {name})
        {name}1 = Reshape({name}0, apart)
        {name}2 = Transpose<perm = [{perm}]>({name}1)
        {name}3 = Reshape({name}2, joined)"""


CORE = """
        kt = Transpose<perm = [0,2,1]>(k3)
        s0 = MatMul(q3, kt)
        p = Softmax<axis = 2>(s0)
        c0 = MatMul(p, v3)"""


def attention(core: str = CORE, weights: str = "", perm: str = "0,2,1,3", parted: str = "", more: str = "") -> ModelProto:
    """Six heads of size 4, as torch's `bmm` wants them."""
    sizes = APART.replace("parted = {-1,6,5,4}", f"parted = {{{parted}}}") if parted else APART
    return net(f"""
        attention (float[B,5,12] x) => (float[B,5,5] y{more}) <{WEIGHTS}, {sizes}{weights}> {{
            {split("q", perm)} {split("k", perm)} {split("v", perm)} {core}
            c1 = Reshape(c0, parted)
            c2 = Transpose<perm = [{"1,2,0,3" if parted else "0,2,1,3"}]>(c1)
            c3 = Reshape(c2, back)
            y = MatMul(c3, o)
        }}""")


CORES = [
    CORE,
    CORE.replace("MatMul(q3, kt)", 'Einsum<equation = "b t d, b s d -> b t s">(q3, k3)').replace("MatMul(p", "MatMul (p"),
    CORE.replace("MatMul(p, v3)", 'Einsum<equation = "zij,zjd->zid">(p, v3)'),
    CORE.replace("Softmax<axis = 2>(s0)", "Softmax(s1)").replace("p =", "half = Mul(s0, scale)\n s1 = Add(half, mask)\n p ="),
    CORE.replace("Softmax<axis = 2>(s0)", "Softmax(s1)").replace("p =", "cold = Neg(s0)\n s1 = Where(chosen, s0, cold)\n p ="),
]

CONSTANTS = ", float scale = {0.5}, float[1,5,5] mask, bool[5,5] chosen = {1,0,1,1,0,1,1,0,1,1,0,1,1,1,1,0,0,1,1,0,1,1,1,0,1}"


@pytest.mark.parametrize("core", CORES)
def test_heads_and_their_channels_may_leave(core: str) -> None:
    model = attention(core, CONSTANTS)
    graph = graphprune.load(model)
    assert not any(isinstance(dim, str) and "*" in dim for shape in graph.shapes.values() for dim in shape or ())
    assert sorted(groups(model).values()) == [4, 4, 6]
    result = halve(model, silence=True)
    assert shapes(result.model)["o"] == [6, 5]


def test_heads_before_samples() -> None:
    """The order of 2017's reference in torch: [h, B, T, d]."""
    model = attention(perm="2,0,1,3", parted="6,-1,5,4")
    assert sorted(groups(model).values()) == [4, 4, 6]
    halve(model, silence=True)


def test_queries_keys_and_values_in_one_piece() -> None:
    """[B, (h 3 d), T] as [(h*B), 3 d, T], then split, as in latent diffusion."""
    model = net("""
        fused (float[B,12,5] x) => (float[B,7,5] y)
        <float[72,12,1] w, int64[3] joined = {-1,12,5}, int64[3] back = {-1,24,5}, float[7,24,1] o> {
            a = Conv(x, w)
            b = Reshape(a, joined)
            q, k, v = Split<axis = 1>(b)
            s = Einsum<equation = "bct,bcs->bts">(q, k)
            p = Softmax(s)
            c = Einsum<equation = "bts,bcs->bct">(p, v)
            d = Reshape(c, back)
            y = Conv(d, o)
        }""")
    assert sorted(groups(model).values()) == [4, 4, 6]
    assert shapes(halve(model, silence=True).model)["o"] == [7, 6, 1]


@pytest.mark.parametrize("part", ["Slice(b, from, to, one)", "Concat<axis = 1>(b0, b1)"])
def test_parts_of_a_head(part: str) -> None:
    """A rotation of halves, say."""
    model = net(f"""
        parts (float[B,12,5] x) => (float[B,7,5] y)
        <float[24,12,1] w, int64[3] joined = {{-1,4,5}}, int64[3] back = {{-1,{12 if "Slice" in part else 24},5}},
         int64[1] from = {{2}}, int64[1] to = {{4}}, int64[1] one = {{1}}, float[7,{12 if "Slice" in part else 24},1] o> {{
            a = Conv(x, w)
            b = Reshape(a, joined)
            b0, b1 = Split<axis = 1>(b)
            h = {part}
            ht = Transpose<perm = [0,2,1]>(h)
            s = MatMul(ht, h)
            c = MatMul(h, s)
            d = Reshape(c, back)
            y = Conv(d, o)
        }}""")
    assert 6 in groups(model).values()
    halve(model, silence=True)


def test_sizes_that_are_multiplied_at_run_time() -> None:
    """The older exporter writes `view(batch * 6, -1, 4)` so."""
    sizes = """
            s = Shape(x)
            n = Gather(s, zero)
            m = Mul(n, six)
            rows = Unsqueeze(m, zero1)
            joined = Concat<axis = 0>(rows, rest)
            back_n = Div(m, six)
            n1 = Unsqueeze(back_n, zero1)
            parted = Concat<axis = 0>(n1, grid)"""
    model = net(f"""
        sizes (float[B,5,12] x) => (float[B,5,5] y)
        <{WEIGHTS}, int64[4] apart = {{-1,5,6,4}}, int64[3] back = {{-1,5,24}}, int64 zero = {{0}}, int64[1] zero1 = {{0}},
         int64 six = {{6}}, int64[2] rest = {{-1,4}}, int64[3] grid = {{6,5,4}}> {{
            {sizes} {split("q")} {split("k")} {split("v")} {CORE}
            c1 = Reshape(c0, parted)
            c2 = Transpose<perm = [0,2,1,3]>(c1)
            c3 = Reshape(c2, back)
            y = MatMul(c3, o)
        }}""")
    assert sorted(groups(model).values()) == [4, 4, 6]
    halve(model, silence=True)


STAYS = [
    ("as it is an output", CORE, ", float[H,5,5] p"),
    ("as samples are compared", CORE.replace("Softmax<axis = 2>", "Softmax<axis = 0>"), ""),
    ("as an operator is not listed", CORE.replace("Softmax<axis = 2>(s0)", "CumSum(s0, two)"), ""),
    ("as a mask has other sizes for each", CORE.replace("Softmax<axis = 2>(s0)", "Add(s0, m)"), ""),
]


@pytest.mark.parametrize(("why", "core", "more"), STAYS, ids=[why for why, *_ in STAYS])
def test_it_stays_joined(why: str, core: str, more: str) -> None:
    """Then channels of heads may leave, heads may not."""
    model = attention(core, ", int64 two = {2}", more=more)
    if "Add" in core:
        model.graph.input.append(model.graph.input[0])
        model.graph.input[1].name = "m"
        for axis, size in enumerate((1, 5, 5)):
            model.graph.input[1].type.tensor_type.shape.dim[axis].dim_value = size
    assert "6*B" in (graphprune.load(model).shape("s0") or ())
    assert 6 not in groups(model).values()
    halve(model, silence=True)


def test_steps_as_samples_stay_joined() -> None:
    """There is nothing to gain without products of two values: the network stays as it was written."""
    model = net("""
        steps (float[N,5,6] x) => (float[N,2] y)
        <int64[2] apart = {-1,6}, float[6,8] w1, int64[2] back = {-1,40}, float[40,2] w2> {
            a = Reshape(x, apart)
            b = MatMul(a, w1)
            d = Reshape(b, back)
            y = MatMul(d, w2)
        }""")
    assert operators(graphprune.load(model).model) == ["Reshape", "MatMul", "Reshape", "MatMul"]
    assert graphprune.load(model).shape("b") == ("5*N", 8)
