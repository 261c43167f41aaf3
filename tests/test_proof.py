"""The proof: it passes where it should and, above all, fails where it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from halving import plan_that_keeps
from nets import initializer, net, operators, plain, residual, set_initializer, write
from onnx import ModelProto, TensorProto

import graphprune
from graphprune.errors import ProofError, UsageError
from graphprune.proof import Comparison, Proof, difference, masked_reference

CYCLE = [1, 2, 0]
"""A permutation that is not its own inverse."""


def pruned() -> graphprune.Result:
    return graphprune.apply_plan(residual(), plan_that_keeps(residual(), {"stem:0": [0, 2, 3, 6, 7], "inner:0": [1, 2, 5]}))


def verdict(change: Callable[[ModelProto], None]) -> Proof:
    """The proof for a pruned model after somebody changed it."""
    result = pruned()
    model = ModelProto()
    model.CopyFrom(result.model)
    change(model)
    return graphprune.verify(residual(), result.plan, model)


def test_it_passes_for_the_pruned_model() -> None:
    proof = verdict(lambda model: None)
    assert proof.passed
    assert proof.max_error < 1e-5
    assert (proof.outputs, proof.inner) == (1, 3)
    assert str(proof).startswith("proof: equal to the masked original (max error ")


def test_it_fails_for_a_wrong_index() -> None:
    """Row 4 of the original instead of row 5."""

    def change(model: ModelProto) -> None:
        set_initializer(model, "inner", initializer(residual(), "inner")[[1, 2, 4]][:, [0, 2, 3, 6, 7]])

    proof = verdict(change)
    assert not proof.passed
    assert proof.max_error > 1e-2
    assert "NOT equal to the masked original at " in str(proof)


@pytest.mark.parametrize("order", [CYCLE, [0, 2, 1]])
def test_it_fails_for_permuted_channels(order: list[int]) -> None:
    def change(model: ModelProto) -> None:
        set_initializer(model, "inner", initializer(model, "inner")[order])

    assert not verdict(change).passed


def test_it_fails_where_a_consumer_is_permuted_the_other_way_round() -> None:
    """The mistake that an involution would hide: the inverse permutation where the permutation belongs."""

    def wrong(model: ModelProto) -> None:
        for name in ("inner", "s2", "o2", "m2", "v2"):
            set_initializer(model, name, initializer(model, name)[CYCLE])
        set_initializer(model, "outer", initializer(model, "outer")[:, np.argsort(CYCLE)])

    assert not verdict(wrong).passed


def test_inner_results_are_compared_too() -> None:
    """A permutation that is undone later leaves the outputs as they are; the proof still points at it."""

    def consistent(model: ModelProto) -> None:
        for name in ("inner", "s2", "o2", "m2", "v2"):
            set_initializer(model, name, initializer(model, name)[CYCLE])
        set_initializer(model, "outer", initializer(model, "outer")[:, CYCLE])

    proof = verdict(consistent)
    assert not proof.passed
    assert proof.worst == "c2"


@pytest.mark.parametrize(("name", "by"), [("bias", 0.01), ("o2", 0.01), ("stem", 0.02), ("head", 0.01), ("v3", 0.05)])
def test_it_fails_for_any_weight_that_was_changed(name: str, by: float) -> None:
    def change(model: ModelProto) -> None:
        array = initializer(model, name).copy()
        array.ravel()[-1] += by
        set_initializer(model, name, array)

    assert not verdict(change).passed


def test_it_fails_for_a_changed_operator() -> None:
    def change(model: ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"

    assert not verdict(change).passed


def test_it_fails_for_outputs_of_another_shape() -> None:
    def change(model: ModelProto) -> None:
        set_initializer(model, "head", initializer(model, "head")[:3])
        set_initializer(model, "bias", initializer(model, "bias")[:3])
        model.graph.output[0].type.tensor_type.ClearField("shape")

    proof = verdict(change)
    assert not proof.passed
    assert proof.max_error == float("inf")


def test_it_fails_for_values_that_are_no_numbers() -> None:
    def change(model: ModelProto) -> None:
        set_initializer(model, "bias", np.full(4, np.nan, np.float32))

    assert not verdict(change).passed


SATURATED = """
    sat (float[N,5] x) => (float[N,4] y{more})
    <float[5,8] w1, float[8,8] w2, float[8,4] w3, float big = {{{big}}}, float one = {{1}}> {{
        a = MatMul(x, w1)
        b = Mul(a, big)
        c = Exp(b)
        g = Add(c, one)
        d = Div(c, g)
        e = MatMul(d, w2)
        f = Tanh(e)
        {last}
    }}"""


def tripled(model: ModelProto) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    for name in ("w2", "w3"):
        set_initializer(result, name, initializer(result, name) * 3)
    return result


def test_no_numbers_prove_nothing() -> None:
    """Infinity over infinity is no number in both: on smaller inputs there is something to compare."""
    model = net(SATURATED.format(big=1000.0, more="", last="y = MatMul(f, w3)"))
    result = graphprune.prune(model, targets=["params=0.6"], align=1)
    assert result.proof is not None
    assert result.proof.passed
    with pytest.raises(ProofError, match="values at 'e' that are not finite"):
        graphprune.verify(model, result.plan, tripled(result.model))


def test_an_output_that_never_has_numbers() -> None:
    """Nothing can be told where it is the only one; where there are others, the proof says so."""
    alone = net(SATURATED.format(big=1e30, more="", last="y = MatMul(f, w3)"))
    with pytest.raises(ProofError, match="nothing can be told"):
        graphprune.prune(alone, targets=["params=0.6"], align=1)
    both = net(SATURATED.format(big=1e30, more=", float[N,4] z", last="y = MatMul(f, w3)  h = Tanh(a)  z = MatMul(h, w3)"))
    proof = graphprune.prune(both, targets=["params=0.6"], align=1).proof
    assert proof is not None
    assert "output 'y' has no finite number on random inputs, so nothing is known of it" in str(proof)


def test_an_original_that_overflows_tells_nothing() -> None:
    model = net("""
        deep (float[2,3] x) => (float[2,4] y) <float[3,8] w1, float[8,8] w2, float[8,8] w3, float[8,4] w4> {
            a = MatMul(x, w1)
            b = Exp(a)
            c = MatMul(b, w2)
            d = MatMul(c, w3)
            y = MatMul(d, w4)
        }""")
    for name in ("w2", "w3"):
        set_initializer(model, name, np.abs(initializer(model, name)) * np.float32(3e37))
    with pytest.raises(ProofError, match="the masked original gives values at 'd' that are not finite on random inputs"):
        graphprune.prune(model, targets=["channels=0.5"], align=1)
    assert graphprune.prune(model, targets=["channels=0.5"], align=1, verify=False).proof is None


def test_a_model_that_does_not_run_is_an_error() -> None:
    def change(model: ModelProto) -> None:
        set_initializer(model, "outer", initializer(model, "outer")[:, :2])

    with pytest.raises(ProofError, match="ONNX Runtime cannot run the pruned model"):
        verdict(change)


def test_a_model_with_other_outputs_is_an_error() -> None:
    def change(model: ModelProto) -> None:
        model.graph.node[-1].output[0] = model.graph.output[0].name = "z"

    with pytest.raises((ProofError, UsageError)):
        verdict(change)


def test_the_command_fails_with_its_own_exit_code(tmp_path: Path, graphprune_cli: Callable[..., Result]) -> None:
    result = pruned()
    source, plan = write(residual(), tmp_path / "m.onnx"), tmp_path / "plan.json"
    plan.write_text(result.plan.to_json())
    good = write(result.model, tmp_path / "good.onnx")
    set_initializer(result.model, "bias", initializer(result.model, "bias") + np.float32(0.01))
    bad = write(result.model, tmp_path / "bad.onnx")
    assert graphprune_cli("verify", source, plan, good).exit_code == 0
    failed = graphprune_cli("verify", source, plan, bad)
    assert failed.exit_code == 5
    assert "NOT equal to the masked original at 'y'" in failed.stdout + failed.stderr
    assert graphprune_cli("verify", source, plan, source).exit_code == 5, "the original is not the masked original"


def test_prune_writes_nothing_when_the_proof_fails(
    tmp_path: Path, graphprune_cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rewrite with a mistake in it: one weight's channels in another order."""
    from graphprune.passes.rewrite import shrink

    right = shrink.shrink

    def wrong(*arguments: object) -> ModelProto:
        model: ModelProto = right(*arguments)
        set_initializer(model, "inner", initializer(model, "inner")[[1, 2, 0]])
        return model

    monkeypatch.setattr(shrink, "shrink", wrong)
    source, out, plan = write(residual(), tmp_path / "m.onnx"), tmp_path / "out.onnx", tmp_path / "plan.json"
    arguments = ["prune", source, "-o", out, "--target", "channels=0.5", "--align", "1", "--selection", "uniform", "--plan", plan]
    result = graphprune_cli(*arguments)
    assert result.exit_code == 5
    assert "NOT equal to the masked original" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]
    assert graphprune_cli(*arguments, "--no-verify").exit_code == 0
    assert out.exists()


# ---- the masked reference -----------------------------------------------------------------------


def reference(model: ModelProto, keep: dict[str, list[int]]) -> ModelProto:
    analysis = graphprune.analyze(model)
    return masked_reference(analysis, analysis.present(keep))


def test_the_mask_stands_right_where_channels_are_contracted() -> None:
    masked = reference(plain(), {"w1:0": [0, 3, 4]})
    assert operators(masked) == ["Conv", "Relu", "Mul", "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    mask = next(tensor for tensor in masked.graph.initializer if "mask" in tensor.name)
    assert list(mask.dims) == [8, 1, 1]
    assert initializer(masked, mask.name).ravel().tolist() == [1, 0, 0, 1, 1, 0, 0, 0]


def test_every_consumer_is_masked() -> None:
    masked = reference(residual(), {"stem:0": [0, 1], "inner:0": [5]})
    assert operators(masked).count("Mul") == 3


def test_nothing_is_masked_where_nothing_is_removed() -> None:
    assert operators(reference(plain(), {})) == operators(plain())


def test_a_mask_of_attention_stands_at_one_of_the_two_operands() -> None:
    model = net("""
        scores (float[N,6,10] x) => (float[N,6,6] y) <float[10,4] q, float[10,4] k> {
            a = MatMul(x, q)
            b = MatMul(x, k)
            t = Transpose<perm = [0,2,1]>(b)
            y = MatMul(a, t)
        }""")
    analysis = graphprune.analyze(model)
    assert operators(reference(model, {analysis.groups[0].id: [1, 2]})).count("Mul") == 1
    proof = graphprune.prune(model, targets=["channels=0.5"], align=1).proof
    assert proof is not None
    assert proof.passed


# ---- inputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["N,3,H,W", "1,3,8,8", "batch,3,8,W", "7,3,9,11"])
def test_dynamic_and_fixed_shapes(shape: str) -> None:
    model = net(f"""
        shape (float[{shape}] x) => (float[A,4] y) <float[8,3,3,3] w1, float[8,4] w2> {{
            a = Conv(x, w1)
            p = GlobalAveragePool(a)
            f = Flatten(p)
            y = MatMul(f, w2)
        }}""")
    proof = graphprune.prune(model, targets=["channels=0.5"], align=1).proof
    assert proof is not None
    assert proof.passed


def deep() -> ModelProto:
    """Six poolings: inputs below 64 x 64 leave nothing of the image."""
    pools = "\n".join(f"p{k + 1} = MaxPool<kernel_shape = [2,2], strides = [2,2]>(p{k})" for k in range(6))
    return net(f"""
        deep (float[N,3,H,W] x) => (float[N,4,A,B] y) <float[8,3,1,1] w1, float[4,8,2,2] w2> {{
            p0 = Conv(x, w1)
            {pools}
            y = Conv(p6, w2)
        }}""")


def test_larger_inputs_are_tried_where_small_ones_do_not_fit() -> None:
    proof = graphprune.prune(deep(), targets=["channels=0.5"], align=1).proof
    assert proof is not None
    assert proof.passed


def test_the_user_gives_the_size_of_inputs() -> None:
    proof = graphprune.prune(deep(), targets=["channels=0.5"], align=1, input_shapes={"x": [1, 3, 130, 190]}).proof
    assert proof is not None
    assert proof.passed
    with pytest.raises(ProofError, match="--input-shape"):
        graphprune.prune(deep(), targets=["channels=0.5"], align=1, input_shapes={"x": [1, 3, 64, 64]})
    with pytest.raises(UsageError, match="no such input; it has: x"):
        graphprune.prune(deep(), targets=["channels=0.5"], align=1, input_shapes={"image": [1, 3, 64, 64]})
    with pytest.raises(UsageError, match="does not fit"):
        graphprune.prune(deep(), targets=["channels=0.5"], align=1, input_shapes={"x": [1, 4, 64, 64]})


def test_integer_inputs_stay_within_the_table() -> None:
    model = net("""
        lookup (int64[N,T] tokens, bool[N,T] mask, uint8[N,T] level) => (float[N,T,4] y)
        <float[5,8] table, float[8,4] w, int64[1] last = {2}> {
            e = Gather(table, tokens)
            c = Cast<to = 1>(mask)
            d = Cast<to = 1>(level)
            m = Mul(c, d)
            u = Unsqueeze(m, last)
            p = Mul(e, u)
            y = MatMul(p, w)
        }""")
    for seed in range(3):
        proof = graphprune.prune(model, targets=["channels=0.5"], align=1, seed=seed).proof
        assert proof is not None
        assert proof.passed
        assert proof.seed == seed


def test_several_outputs_are_all_compared() -> None:
    model = net("""
        several (float[N,3,4,4] x) => (float[N,2,4,4] y, int64[N,1,4,4] best, float[N,5,4,4] same)
        <float[8,3,1,1] w1, float[2,8,1,1] w2, float[5,8,1,1] w3> {
            a = Conv(x, w1)
            y = Conv(a, w2)
            c = Conv(a, w3)
            best = ArgMax<axis = 1>(c)
            same = Relu(c)
        }""")
    proof = graphprune.prune(model, targets=["channels=0.5"], align=1).proof
    assert proof is not None
    assert (proof.passed, proof.outputs) == (True, 3)


# ---- differences --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "actual", "error"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.2, -4.0], 0.05),
        ([np.inf, 2.0], [np.inf, 2.0], 0.0),
        ([np.nan, 2.0], [np.nan, 1.0], 0.5),
        ([np.inf, 2.0], [-np.inf, 2.0], np.inf),
        ([1.0, 2.0], [np.nan, 2.0], np.inf),
        ([1.0, 2.0], [1.0, np.inf], np.inf),
        ([], [], 0.0),
    ],
)
def test_differences_are_relative_to_the_largest_value(expected: list[float], actual: list[float], error: float) -> None:
    found, tolerance = difference(np.array(expected, np.float32), np.array(actual, np.float32))
    assert found == pytest.approx(error, rel=1e-5)
    assert tolerance == 1e-4


def test_a_single_wrong_integer_is_too_many() -> None:
    wrong = np.arange(1000)
    wrong[999] = 0
    error, tolerance = difference(np.arange(1000), wrong)
    assert error > tolerance
    assert difference(np.arange(1000), np.arange(1000))[0] == 0


def test_other_shapes_differ_without_bound() -> None:
    assert difference(np.zeros((2, 1)), np.zeros((1, 2)))[0] == np.inf


@pytest.mark.parametrize(("kind", "passes"), [(TensorProto.FLOAT16, True), (TensorProto.FLOAT, False)])
def test_what_goes_through_half_precision_is_as_coarse(kind: int, passes: bool) -> None:
    """Inputs and outputs are single precision; a difference of a thousandth is rounding only where halves are on the way."""
    model = net(f"""net (float[2,6] x) => (float[2,4] y) <float[6,8] w, float[8,4] v> {{
        a = MatMul (x, w)
        b = Cast <to = {kind}> (a)
        c = Cast <to = 1> (b)
        y = MatMul (c, v)
    }}""")
    other = ModelProto()
    other.CopyFrom(model)
    set_initializer(other, "v", initializer(model, "v") * np.float32(1.001))
    graph = graphprune.load(model)
    proof = Comparison(graph, graph.model, other, lambda name, axis: None, [], 0, None).proof()
    assert proof.passed is passes
    assert 5e-4 < proof.max_error < 2e-3


def test_a_network_that_runs_on_single_samples_alone() -> None:
    """It says that its batch is dynamic, and then counts on one."""
    model = net("""
        single (float[N,5,3] x) => (float[M,6,2] y) <float[3,8] w1, float[1,1,8] token, float[8,2] w2> {
            a = MatMul(x, w1)
            j = Concat<axis = 1>(token, a)
            y = MatMul(j, w2)
        }""")
    result = graphprune.prune(model, targets=["channels=0.5"], align=1)
    assert result.proof is not None
    assert result.proof.passed
