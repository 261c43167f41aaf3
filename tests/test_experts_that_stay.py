"""Experts that stay whatever is asked for, and what is no mixture of experts."""

from __future__ import annotations

import pytest
from halving import groups, pinned
from mixtures import GATHERED, TOPK_FIRST, free, mixture, reason
from nets import net

import graphprune


@pytest.mark.parametrize(
    ("taking", "outputs", "weights", "reader"),
    [
        ("e = Equal(i, zero)\n q = Cast<to = 1>(e)\n", ", float[6,2] q", ", int64 zero = {0}", "(Equal)"),
        ("q = Cast<to = 1>(i)\n", ", float[6,2] q", "", "'Cast_q' (Cast)"),
        ("q = Identity(i)\n", ", int64[6,2] q", "", "the network's output"),
        ("j = Add(i, zero)\n q = Gather(table, j)\n", ", float[6,2] q", ", int64 zero = {0}, float[5] table", "'Add_j' (Add)"),
        ("q = GatherND(square, i)\n", ", float[6,5] q", ", float[5,5,5] square", "(GatherND)"),
        ("q = OneHot<axis = -1>(i, depth, values)\n", ", float[6,2,5] q", ", int64 depth = {5}, float[2] values", "(OneHot)"),
        (
            "q0 = ConstantOfShape(at)\n q = ScatterElements<axis = -1>(q0, i, w)\n",
            ", float[6,5] q",
            ", int64[2] at = {6, 5}",
            "(ScatterElements)",
        ),
    ],
)
def test_experts_whose_numbers_are_used_otherwise_stay(taking: str, outputs: str, weights: str, reader: str) -> None:
    model = mixture(taking=taking + GATHERED, outputs=outputs, weights=weights)
    assert "gate:1" not in free(model)
    assert reader in reason(model)
    assert reason(model).endswith("needs the numbers of the experts that TopK chooses")
    assert pinned(model)["gate:1"] == reason(model), "the option would not help"


def test_numbers_that_a_loop_reads_keep_the_experts() -> None:
    loop = """q = Loop(trips, , x) <body = body (int64 trip, bool go_in, float[6,10] state) => (bool go, float[6,10] next) {
                go = Identity(go_in)
                e = Cast<to = 1>(i)
                s1 = ReduceSum<keepdims = 0>(e)
                next = Add(state, s1)
            }>
            """
    model = mixture(taking=loop + GATHERED, outputs=", float[6,10] q", weights=", int64 trips = {2}")
    assert "gate:1" not in free(model)
    assert "(Loop) needs the numbers of the experts that TopK chooses" in pinned(model)["gate:1"]


def test_a_number_that_is_no_constant_keeps_the_experts() -> None:
    text = "n0 = Shape<start = 0, end = 1>(x)\n six = Sub(n0, four)\n" + TOPK_FIRST.replace("two", "six")
    model = net(f"""
        dynamic (float[N,10] x) => (float[N,4] y)
        <float[10,12] w0, float[12,5] gate, float[5,12] table, float[12,4] head, int64[1] four = {{4}}, int64[1] one = {{1}}> {{
            h = MatMul(x, w0)
            logits = MatMul(h, gate)
            {text}
            u = Gather<axis = 0>(table, i)
            t = ReduceSum<keepdims = 0>(u, one)
            y = MatMul(t, head)
        }}""")
    assert free(model).keys() == groups(model).keys()
    assert "TopK" in pinned(model)["gate:1"]


def test_a_table_of_another_size_keeps_the_experts() -> None:
    model = mixture(
        taking="q0 = Gather<axis = 0>(table, i)\n q = MatMul(q0, side)\n" + GATHERED,
        outputs=", float[6,2,3] q",
        weights=", float[6,4] table, float[4,3] side",
    )
    assert "gate:1" not in free(model)
    assert "axes of sizes 6 and 5" in next(
        p.reason.text for p in graphprune.analyze(model, experts="prune").pinned if p.tensor == "gate"
    )


def test_gates_that_are_an_output_stay() -> None:
    assert "gate:1" not in free(mixture(more="y = MatMul(z, head)\n q = Identity(logits)", outputs=", float[6,5] q"))


def test_experts_that_are_summed_over_stay() -> None:
    more = "q = ReduceSum(logits, last)\n y = MatMul(z, head)"
    model = mixture(more=more, outputs=", float[6,1] q")
    assert "gate:1" not in free(model)


OTHERS = {
    "attention": """
        attention (float[2,6,8] x) => (float[2,6,3] y) <float[8,8] q, float[8,8] k, float[8,8] v, float[8,3] head> {
            a = MatMul(x, q)  b = MatMul(x, k)  c = MatMul(x, v)
            t = Transpose<perm = [0, 2, 1]>(b)
            s = MatMul(a, t)  p = Softmax<axis = -1>(s)
            m = MatMul(p, c)  y = MatMul(m, head)
        }""",
    "the best of learned queries": """
        queries (float[2,6,8] x) => (float[2,3,4] y)
        <float[9,8] queries, float[8,8] key, float[8,1] score, float[8,4] box, int64[1] three = {3}, int64[1] last = {-1}> {
            k = MatMul(x, key)  t = Transpose<perm = [0, 2, 1]>(k)
            s = MatMul(queries, t)  p = Softmax<axis = -1>(s)
            m = MatMul(p, x)
            l = MatMul(m, score)  f = Squeeze(l, last)
            v, i = TopK(f, three)
            b = MatMul(m, box)
            n = Unsqueeze(i, last)
            y = GatherND<batch_dims = 1>(b, n)
        }""",
    "the best classes": """
        classes (float[2,8] x) => (float[2,3] y, int64[2,3] i)
        <float[8,12] up, float[12,9] classes, int64[1] three = {3}> {
            h = MatMul(x, up)  r = Relu(h)  l = MatMul(r, classes)
            p = Softmax<axis = -1>(l)
            y, i = TopK(p, three)
        }""",
    "a gate over all experts": """
        dense (float[2,8] x) => (float[2,3] y) <float[8,9] gate, float[9,3] experts> {
            l = MatMul(x, gate)  p = Softmax<axis = -1>(l)  y = MatMul(p, experts)
        }""",
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS.keys())
def test_what_is_no_mixture_stays_as_it_was(text: str) -> None:
    model = net(text)
    kept, pruned = graphprune.analyze(model), graphprune.analyze(model, experts="prune")
    assert {g.id: g.size for g in kept.groups} == {g.id: g.size for g in pruned.groups}
    assert [p.reason for p in kept.pinned] == [p.reason for p in pruned.pinned]
    assert not any("experts" in p.reason.text for p in kept.pinned)


def test_other_axes_of_what_is_chosen_are_carried() -> None:
    """Channels of which each has its own choice among pinned positions."""
    model = net("""
        channels (float[2,3,6] x) => (float[2,5,2] y)
        <float[8,3,1] w1, float[5,8,1] w2, int64[1] two = {2}> {
            a = Conv(x, w1)  v, i = TopK(a, two)  y = Conv(v, w2)
        }""")
    assert groups(model) == {"w1:0": 8}
