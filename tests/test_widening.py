"""Networks of bfloat16 are proven in float32 (`graphprune.widening`)."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from nets import initializer, net, set_initializer, write
from onnx import ModelProto, TensorProto, helper

import graphprune
from graphprune import external, model_file, parts
from graphprune.evaluation import accuracy
from graphprune.external import is_external
from graphprune.plan import read_weights, write_weights
from graphprune.runtime import run
from graphprune.widening import is_narrow, widened

BODY = """
    half = Constant<value = bfloat16[1] {16128}>()
    h = MatMul(x, a)
    i = Mul(h, half)
    r = Relu(i)
    f = Cast<to = 1>(r)
    s = Sigmoid(f)
    g = Cast<to = 16>(s)
    y = MatMul(g, b)"""


def narrow(body: str = BODY) -> ModelProto:
    model = net(f"narrow (bfloat16[N,6] x) => (bfloat16[N,5] y) <float[6,16] a, float[16,5] b> {{ {body} }}", opset=21)
    for name in "ab":
        set_initializer(model, name, initializer(model, name).astype(ml_dtypes.bfloat16))
    return model


def choosing() -> ModelProto:
    model = net(
        """choosing (bfloat16[N,6] x, bool c) => (bfloat16[N,5] y) <float[6,16] a, float[16,5] b> {
            h = MatMul(x, a)
            y = If (c) <
                then_branch = one () => (bfloat16[N,5] p) { r = Relu(h)  p = MatMul(r, b) },
                else_branch = two () => (bfloat16[N,5] q) {
                    f = Cast<to = 1>(h)  t = Tanh(f)  g = Cast<to = 16>(t)  q = MatMul(g, b) }>
        }""",
        opset=21,
    )
    for name in "ab":
        set_initializer(model, name, initializer(model, name).astype(ml_dtypes.bfloat16))
    return model


def half_of(model: ModelProto | Path) -> graphprune.Result:
    return graphprune.prune(model, targets=["channels=0.5"], importance="magnitude", selection="uniform", align=1)


@pytest.mark.parametrize("made", [narrow, choosing])
def test_it_is_proven_and_stays_bfloat16(made: object) -> None:
    model = made()  # type: ignore[operator]
    result = half_of(model)
    assert result.proof is not None
    assert result.proof.passed
    assert not result.proof.reservation
    assert result.proof.max_error < 1e-5
    types = {tensor.name: tensor.data_type for tensor in result.model.graph.initializer}
    assert (types["a"], types["b"]) == (TensorProto.BFLOAT16, TensorProto.BFLOAT16)
    assert initializer(result.model, "a").shape == (6, 8)
    assert result.model.graph.output[0].type.tensor_type.elem_type == TensorProto.BFLOAT16


def test_the_proof_fails_for_a_wrong_weight() -> None:
    """One that bfloat16 itself would have rounded away in the result is seen, too."""
    result = half_of(narrow())
    changed = ModelProto()
    changed.CopyFrom(result.model)
    assert graphprune.verify(narrow(), result.plan, changed).passed
    a = initializer(changed, "a").astype(np.float32)
    a[2, 3] *= 1.01
    set_initializer(changed, "a", a.astype(ml_dtypes.bfloat16))
    assert not graphprune.verify(narrow(), result.plan, changed).passed


@pytest.mark.parametrize("size", [1, 2**20])
def test_weights_in_files(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(narrow(), tmp_path / "m.onnx")
    for name in ("MAPPED", "LARGE"):
        monkeypatch.setattr(model_file, name, 16)
    monkeypatch.setattr(parts, "PART_BYTES", size)
    proof = half_of(path).proof
    assert proof is not None
    assert proof.passed
    wide = widened(model_file.read_model(path))
    assert any(map(is_external, wide.graph.initializer))
    assert external.mapped(wide.graph.initializer[0]).dtype == np.float32


def test_constants_that_are_folded_are_rounded() -> None:
    """1 / 3 is another number in bfloat16: the normal form has that one, the model as it is given computes it in float32."""
    third = "three = Constant<value = bfloat16[1] {16448}>() third = Reciprocal(three) v = Mul(x, third)"
    model = narrow(f"{third} {BODY.replace('MatMul(x, a)', 'MatMul(v, a)')}")
    proof = half_of(model).proof
    assert proof is not None
    assert proof.passed
    assert not proof.reservation


def test_widened_computes_what_float32_does() -> None:
    model, x = narrow(), np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    wide = widened(model)
    assert is_narrow(model)
    assert not is_narrow(wide)
    a, b = (initializer(model, name).astype(np.float32) for name in "ab")
    expected = 1 / (1 + np.exp(-np.maximum(x @ a * 0.5, 0))) @ b
    np.testing.assert_allclose(run(wide, {"x": x})["y"], expected, rtol=1e-5, atol=1e-5)


def test_functions_and_sequences() -> None:
    model = net("seq (bfloat16[N,6] x) => (seq(bfloat16[N,6]) y) { y = SequenceConstruct(x) }")
    cast = helper.make_node("Cast", ["p"], ["q"], to=TensorProto.BFLOAT16)
    model.functions.append(helper.make_function("own", "f", ["p"], ["q"], [cast], model.opset_import))
    assert is_narrow(model)
    wide = widened(model)
    assert not is_narrow(wide)
    assert wide.functions[0].node[0].attribute[0].i == TensorProto.FLOAT
    assert wide.graph.output[0].type.sequence_type.elem_type.tensor_type.elem_type == TensorProto.FLOAT


def samples(count: int = 200) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(count, 6)).astype(np.float32)}


@pytest.mark.parametrize("repair", ["reconstruct", "obs"])
def test_passes_that_run_the_network(repair: str, tmp_path: Path) -> None:
    """Repairs change weights of bfloat16, which the plan's companion carries: the same bytes come out again."""
    path = write(narrow(), tmp_path / "m.onnx")
    result = graphprune.prune(path, targets=["channels=0.5"], recipe="balanced", repair=[repair], calibration=samples(), align=1)
    assert result.proof is not None
    assert result.proof.passed
    assert result.weights
    assert {array.dtype for array in result.weights.values()} == {np.dtype(ml_dtypes.bfloat16)}
    write_weights(tmp_path / "p.json", result.weights)
    again = graphprune.apply_plan(path, result.plan, weights=read_weights(tmp_path / "p.json"))
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_repairs_help() -> None:
    """The error of the outputs, over their variance, against the network as it was."""
    body, x = BODY.replace("Relu", "Softplus"), samples()
    wanted = run(widened(narrow(body)), x)["y"]
    errors = []
    for repair in ([], ["reconstruct"]):
        changes = {"importance": "magnitude", "selection": "uniform", "repair": repair, "calibration": x, "align": 1}
        result = graphprune.prune(narrow(body), targets=["channels=0.5"], **changes)
        errors.append(np.mean((run(widened(result.model), x)["y"] - wanted) ** 2) / wanted.var())
    assert errors[1] < 0.7 * errors[0]


def test_accuracy_of_bfloat16() -> None:
    x = samples()
    labels = run(widened(narrow()), x)["y"].argmax(axis=1)
    assert accuracy(narrow(), {**x, "labels": labels}) == 1.0


@pytest.mark.torch
@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16])
def test_gradients(kind: type) -> None:
    model = narrow()
    if kind is np.float16:
        body = BODY.replace("bfloat16[1] {16128}", "float16[1] {14336}").replace("to = 16", "to = 10")
        model = net(f"half (float16[N,6] x) => (float16[N,5] y) <float16[6,16] a, float16[16,5] b> {{ {body} }}", opset=21)
    result = graphprune.prune(model, targets=["channels=0.5"], importance="taylor", calibration=samples(), align=1)
    assert result.proof is not None
    assert result.proof.passed
