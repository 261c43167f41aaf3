"""Models in torch: the same values as everywhere else, derivatives as by finite differences, clear errors; polishing helps."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from nets import block, net
from onnx import ModelProto, TensorProto, numpy_helper
from random_graphs import Network, networks

import graphprune
from graphprune.errors import CalibrationError
from graphprune.runtime import random_inputs, run

pytestmark = pytest.mark.torch

TIES = {"test_top_k_same_values", "test_top_k_same_values_largest", "test_top_k_same_values_2d"}
"""Which of equal values comes first is left open by torch."""


def in_torch(model: ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import torch

    from graphprune.differentiable import Differentiable

    with torch.no_grad():
        return {name: value.numpy() for name, value in Differentiable(model)(feeds).items()}


def node_tests() -> list[Any]:
    """The node tests of the onnx package whose operators have a torch function."""
    from onnx.backend.test.case.node import collect_testcases

    from graphprune.torch_operators import FUNCTIONS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    return [case for case in cases if case.model and {node.op_type for node in case.model.graph.node} <= set(FUNCTIONS)]


def test_the_node_tests_of_onnx() -> None:
    """The right numbers or the error that says there is no route; never wrong numbers."""
    passed, refused = set(), set()
    for case in node_tests():
        inputs, outputs = case.data_sets[0]
        if case.name in TIES or any(not isinstance(each, np.ndarray) or each.dtype.kind not in "fiub" for each in inputs):
            continue
        operator = case.model.graph.node[0].op_type
        try:
            given = in_torch(case.model, dict(zip([value.name for value in case.model.graph.input], inputs, strict=True)))
        except CalibrationError:
            refused.add(case.name)
            continue
        for value, wanted in zip(case.model.graph.output, outputs, strict=True):
            tolerance = 1e-2 if wanted.dtype == np.float16 else 2e-5
            np.testing.assert_allclose(given[value.name], wanted, rtol=1e-3, atol=tolerance, err_msg=case.name)
        passed.add(operator)
    assert len(passed) > 90
    assert len(refused) < 150


@settings(max_examples=60, deadline=None)
@given(network=networks())
def test_random_networks(network: Network) -> None:
    graph = graphprune.load(network.model)
    feeds = random_inputs(graph, 0)
    try:
        given = in_torch(graph.model, feeds)
    except CalibrationError:
        return
    for name, wanted in run(graph.model, feeds).items():
        scale = max(1.0, float(np.abs(wanted).max(initial=0)))
        np.testing.assert_allclose(given[name] / scale, wanted / scale, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize(("kernel", "stride", "pads"), [(2, 2, [1, 1, 1, 1]), (3, 2, [0, 1, 1, 0]), (2, 3, [1, 1, 1, 1])])
def test_no_window_of_a_pooling_starts_in_the_padding(ceil: int, kernel: int, stride: int, pads: list[int]) -> None:
    for size in (5, 8, 9):
        model = net(f"""net (float[2,3,{size},{size}] x) => (float[2,3,h,w] y) {{
            y = MaxPool<kernel_shape = [{kernel}, {kernel}], strides = [{stride}, {stride}], pads = {pads}, ceil_mode = {ceil}>(x)
        }}""")
        feeds = {"x": np.random.default_rng(size).normal(size=(2, 3, size, size)).astype(np.float32)}
        np.testing.assert_array_equal(in_torch(model, feeds)["y"], run(model, feeds)["y"])


def test_operators_without_a_route_are_named() -> None:
    model = net("l (float[N,6] x) => (float[N,6] y) { y = Hardmax(x) }")
    with pytest.raises(CalibrationError, match=r"operators without a torch function: Hardmax; use passes that need none"):
        in_torch(graphprune.load(model).model, {"x": np.zeros((1, 6), np.float32)})


def test_cases_without_a_route_are_named() -> None:
    model = net("""
        l (float[1,2,4,4] x) => (float[1,2,3,3] y) <int64[4] s = {1, 2, 3, 3}> { n = Identity(x)
            y = Resize<mode = "nearest">(n, , , s) }""")
    with pytest.raises(CalibrationError, match=r"Resize .*mode nearest as it is used here"):
        in_torch(model, {"x": np.zeros((1, 2, 4, 4), np.float32)})


def test_types_that_torch_lacks_are_named() -> None:
    model = net("c (float[1,6] x) => (float[1,6] y) { s = Cast<to = 8>(x)  y = Cast<to = 1>(s) }")
    with pytest.raises(CalibrationError, match=r"Cast .*Cast to STRING; use passes that need none"):
        in_torch(model, {"x": np.zeros((1, 6), np.float32)})


# ---- polish -------------------------------------------------------------------------------------


def samples(count: int, seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 6, 8, 8)).astype(np.float32)}


def error(result: graphprune.Result, model: ModelProto) -> float:
    feeds = samples(64, 9)
    wanted, given = run(model, feeds)["y"], run(result.model, feeds)["y"]
    return float(((wanted - given) ** 2).mean() / wanted.var())


def test_polishing_brings_the_outputs_closer() -> None:
    model, options = block(), {"targets": "channels=0.6", "calibration": samples(128, 1), "align": 1}
    repaired = graphprune.prune(model, repair="reconstruct", **options)
    polished, again = (graphprune.prune(model, repair=("reconstruct", "polish{epochs=30}"), **options) for _ in range(2))
    assert polished.keep == repaired.keep
    assert error(polished, model) < 0.95 * error(repaired, model)
    assert polished.proof is not None
    assert polished.proof.passed
    assert polished.model.SerializeToString(deterministic=True) == again.model.SerializeToString(deterministic=True)


def in_half(model: ModelProto) -> ModelProto:
    """The model with float16 in place of float32."""
    result = ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
    for value in [*result.graph.input, *result.graph.output]:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return result


def test_half_precision_is_polished_in_single() -> None:
    """Sums of squares overflow in float16, and what keeps divisions from zero is zero there."""
    feeds = {"x": samples(64, 1)["x"].astype(np.float16)}
    results = [
        graphprune.prune(in_half(block()), targets="channels=0.7", calibration=feeds, repair=repair, align=1)
        for repair in ((), ("polish{steps=60}",))
    ]
    weights = [numpy_helper.to_array(tensor) for tensor in results[1].model.graph.initializer]
    assert {array.dtype for array in weights if array.dtype.kind == "f"} == {np.dtype(np.float16)}
    assert all(np.isfinite(array).all() for array in weights)
    unseen = {"x": samples(32, 9)["x"].astype(np.float16)}
    wanted = run(in_half(block()), unseen)["y"].astype(np.float64)
    before, after = (((run(result.model, unseen)["y"] - wanted) ** 2).mean() for result in results)
    assert after < 0.3 * before


def test_gradients_in_half_precision() -> None:
    """A softmax of float16 ends in zeroes, whose logarithm is no number."""
    model = net("""net (float[N,8] x) => (float[N,4] y) <float[8,16] w1, float[16,4] w2> {
        a = MatMul(x, w1)
        r = Relu(a)
        b = MatMul(r, w2)
        y = Softmax(b)
    }""")
    rng = np.random.default_rng(0)
    feeds = {"x": (20 * rng.normal(size=(32, 8))).astype(np.float16), "labels": rng.integers(0, 4, 32)}
    result = graphprune.prune(in_half(model), targets="channels=0.7", calibration=feeds, importance="taylor", repair=(), align=1)
    assert all(np.isfinite(scores).all() for scores in result.scores.values())


def test_polishing_that_diverges_changes_nothing() -> None:
    feeds = samples(64, 1)
    results = [
        graphprune.prune(block(), targets="channels=0.7", calibration=feeds, repair=repair, align=1)
        for repair in ((), ("polish{rate=1e30,steps=20}",))
    ]
    assert error(results[1], block()) == pytest.approx(error(results[0], block()))


@pytest.mark.parametrize("count", [33, 34, 65])
def test_batches_are_of_nearly_equal_size(count: int) -> None:
    from graphprune.passes.repair.polish import _parts

    sizes = [len(part) for part in np.array_split(np.arange(count), _parts(np.arange(count), 32))]
    assert max(sizes) <= 32
    assert max(sizes) - min(sizes) <= 1


def gradients_of(text: str, labels: np.ndarray | None = None) -> list[set[str]]:
    from graphprune.calibration import Calibration
    from graphprune.gradients import batch_gradients
    from graphprune.pipeline import load

    calibration = Calibration(load(net(text)), [{"x": np.ones((4, 8), np.float32)}], labels=labels)
    return [set(found) for found in batch_gradients(calibration)]


def test_an_output_without_axes() -> None:
    assert gradients_of("""net (float[N,8] x) => (float y) <float[8,16] w> {
        a = MatMul(x, w)
        y = ReduceSum<keepdims = 0>(a)
    }""") == [{"w"}]


def test_labels_need_an_output_with_classes() -> None:
    text = """net (float[N,8] x) => (float[N] y) <float[8,16] w, int64[1] last = {1}> {
        a = MatMul(x, w)
        y = ReduceSum<keepdims = 0>(a, last)
    }"""
    with pytest.raises(CalibrationError, match="labels are about classes, but the first output has one number for each sample"):
        gradients_of(text, np.zeros(4, np.int64))


def divergence(result: graphprune.Result, model: ModelProto) -> float:
    """The mean over the samples of the sum over the classes of p * log(p / q)."""
    feeds = samples(64, 9)
    wanted, given = (run(each, feeds)["y"].astype(np.float64) for each in (model, result.model))
    p, q = (np.exp(y) / np.exp(y).sum(axis=1, keepdims=True) for y in (wanted, given))
    return float((p * np.log(p / q)).sum(axis=1).mean())


def test_polishing_what_is_predicted_brings_predictions_closer() -> None:
    model, options = block(), {"targets": "channels=0.6", "calibration": samples(128, 1), "align": 1}
    repaired = graphprune.prune(model, repair="reconstruct", **options)
    polish = "polish{epochs=30,inner=1,distance=divergence}"
    polished = graphprune.prune(model, repair=("reconstruct", polish), **options)
    assert divergence(polished, model) < 0.95 * divergence(repaired, model)


def test_polishing_that_leads_astray_changes_nothing() -> None:
    """What was held back is the judge: steps that are far too long end where they began."""
    model, options = block(), {"targets": "channels=0.6", "calibration": samples(128, 1), "align": 1}
    repaired = graphprune.prune(model, repair="reconstruct", **options)
    polished = graphprune.prune(model, repair=("reconstruct", "polish{epochs=2,rate=30}"), **options)
    for name, array in repaired.weights.items():
        np.testing.assert_allclose(polished.weights[name], array, rtol=1e-6)


LANGUAGE = """
    m (int64[N,6] tokens) => (float[N,6,9] y)
    <float[9,8] embedding, float[8,12] a, float[12,8] b, float[8,9] head> {
        e = Gather<axis = 0>(embedding, tokens)
        h = MatMul(e, a)
        r = Relu(h)
        o = MatMul(r, b)
        s = Add(e, o)
        y = MatMul(s, head)
    }"""


@pytest.mark.parametrize(
    ("text", "predicts"),
    [
        (LANGUAGE, True),
        (LANGUAGE.replace("y = MatMul(s, head)", "y0 = MatMul(s, head)  y = Softmax(y0)"), False),
        (
            LANGUAGE.replace("int64[N,6] tokens", "float[N,6] t").replace("e = Gather", "tokens = Cast<to = 7>(t)  e = Gather"),
            False,
        ),
    ],
)
def test_which_outputs_hold_predictions_for_each_position(text: str, predicts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphprune.passes.repair import polish

    seen = []
    original = polish.Polish.course

    def course(self: polish.Polish, predicted: bool) -> polish.Course:
        seen.append((predicted, original(self, predicted)))
        return seen[-1][1]

    monkeypatch.setattr(polish.Polish, "course", course)
    model = net(text)
    name = model.graph.input[0].name
    rows = {name: np.random.default_rng(0).integers(0, 9, (32, 6)).astype(np.int64 if name == "tokens" else np.float32)}
    graphprune.prune(model, targets="channels=0.7", calibration=rows, repair="polish{epochs=2,rate=0.002}", align=1)
    assert seen == [(predicts, replace(polish.PREDICTIONS if predicts else polish.VALUES, rate=0.002, epochs=2))]


def test_a_batch_of_long_sequences_has_few_of_them() -> None:
    from graphprune.passes.repair.polish import PREDICTIONS, VALUES

    runs = [{"tokens": np.zeros((64, 256), np.int64), "scale": np.zeros(64, np.float32)}]
    assert PREDICTIONS.samples(runs) == 4
    assert VALUES.samples(runs) == 32
    assert PREDICTIONS.samples([{"tokens": np.zeros((64, 4096), np.int64)}]) == 1
    assert PREDICTIONS.samples([{"x": np.zeros(8, np.float32)}]) == 32


def test_divergence_is_the_mean_over_all_positions() -> None:
    import torch

    from graphprune.passes.repair.polish import divergence as loss

    given, wanted = (np.random.default_rng(k).normal(size=(3, 5, 7)) for k in (1, 2))
    p, q = (np.exp(y) / np.exp(y).sum(axis=2, keepdims=True) for y in (wanted, given))
    expected = (p * np.log(p / q)).sum(axis=2).mean()
    assert float(loss(torch.from_numpy(given), torch.from_numpy(wanted))) == pytest.approx(expected, rel=1e-6)


def test_tables_are_not_trained() -> None:
    """A constant that is no weight by the operator table stays, such as a mask."""
    model = net("""
        m (float[N,4,6] x) => (float[N,4,8] y)
        <float[6,10] a, float[10,8] b, float[4,4] mask> {
            h = MatMul(x, a)
            t = Transpose<perm = [0, 2, 1]>(h)
            s = MatMul(h, t)
            m = Add(s, mask)
            p = Softmax(m)
            o = MatMul(p, h)
            y = MatMul(o, b)
        }""")
    rows = {"x": np.random.default_rng(0).normal(size=(32, 4, 6)).astype(np.float32)}
    result = graphprune.prune(model, targets="channels=0.7", calibration=rows, repair="polish{epochs=2}", align=1)
    assert set(result.weights) == {"a", "b"}
