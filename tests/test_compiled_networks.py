"""What TVM computes of small networks, against ONNX Runtime, and which loops it makes of them (marked tvm: `pytest -m tvm`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from marks import with_tvm
from nets import net, plain, residual
from onnx import ModelProto

from graphprune.exporters.tvm_targets import target_options
from graphprune.pipeline import load
from graphprune.runtime import random_inputs, run

CONVOLUTION = (
    "{name} (float[{batch},6,9,11] x) => (float[{batch},{out},H,W] y) <float[{out},{depth},{k},{k}] w, float[{out}] b> {{\n"
)
BODY = "    c = Conv<{attributes}>(x, w, b)\n    y = Relu(c)\n}}"


def convolution(out: int, k: int, depth: int, attributes: str, batch: str = "2") -> ModelProto:
    text = (CONVOLUTION + BODY).format(name="one", batch=batch, out=out, k=k, depth=depth, attributes=attributes)
    return net(text)


NETS = {
    "same": convolution(16, 3, 6, "pads = [1,1,1,1]"),
    "ragged channels": convolution(13, 3, 6, "pads = [1,1,1,1]"),
    "many ragged channels": convolution(37, 1, 6, "strides = [1,1]"),
    "three vectors": convolution(24, 3, 6, "pads = [1,1,1,1]"),
    "stride": convolution(16, 3, 6, "strides = [2,2], pads = [1,0,0,1]"),
    "dilation": convolution(8, 3, 6, "dilations = [2,2], pads = [2,2,2,2]"),
    "few channels": convolution(8, 3, 6, "pads = [1,1,1,1]"),
    "few ragged channels": convolution(7, 3, 6, "strides = [2,2], pads = [1,1,1,1]"),
    "two channels": convolution(2, 5, 6, "dilations = [2,2], pads = [4,4,4,4]"),
    "few channels, dynamic": convolution(4, 1, 6, "strides = [1,1]", batch="N"),
    "few channels, nothing behind": net("few (float[1,4,9,9] x) => (float[1,3,7,7] y) <float[3,4,3,3] w> { y = Conv(x, w) }"),
    "depthwise": convolution(6, 3, 1, "group = 6, pads = [1,1,1,1]"),
    "depthwise multiplier": convolution(12, 3, 1, "group = 6, pads = [1,1,1,1]"),
    "depthwise stride": convolution(6, 5, 1, "group = 6, strides = [2,2], pads = [2,2,2,2]"),
    "groups": convolution(16, 3, 3, "group = 2, pads = [1,1,1,1]"),
    "ragged groups": convolution(10, 3, 3, "group = 2, pads = [1,1,1,1]"),
    "transposed": net("""
        transposed (float[1,6,5,7] x) => (float[1,8,11,15] y) <float[6,6,3,3] v, float[6,8,3,3] w, float[8] b> {
            c = Conv<pads = [1,1,1,1]>(x, v)
            y = ConvTranspose<strides = [2,2], pads = [1,1,0,0], output_padding = [1,1]>(c, w, b)
        }"""),
    "transposed groups": net("""
        transposed (float[1,6,5,7] x) => (float[1,4,10,14] y) <float[6,6,3,3] v, float[6,2,2,2] w> {
            c = Conv<pads = [1,1,1,1]>(x, v)
            y = ConvTranspose<strides = [2,2], group = 2>(c, w)
        }"""),
    "large weights": net(
        "large (float[1,96,6,6] x) => (float[1,160,6,6] y) <float[160,96,3,3] w> { y = Conv<pads = [1,1,1,1]>(x, w) }"
    ),
    "product": net("product (float[5,7] x) => (float[5,19] y) <float[7,19] w, float[19] b> { p = MatMul(x, w)  y = Add(p, b) }"),
    "batched product": net("batched (float[2,3,5,7] x) => (float[2,3,5,40] y) <float[7,40] w> { y = MatMul(x, w) }"),
    "attention": net("""
        attention (float[2,4,5,8] q, float[2,4,8,5] k) => (float[2,4,5,5] y) { s = MatMul(q, k)  y = Softmax<axis = -1>(s) }"""),
    "ragged pairs": net("ragged (float[2,3,13,8] q, float[2,3,8,37] k) => (float[2,3,13,37] y) { y = MatMul(q, k) }"),
    "pairs, dynamic": net("pairs (float[N,5,8] q, float[N,8,5] k) => (float[N,5,5] y) { y = MatMul(q, k) }"),
    "one matrix for many": net("many (float[2,5,8] q, float[1,8,5] k) => (float[2,5,5] y) { y = MatMul(q, k) }"),
    "rows in front": net("front (float[5,1,7] x) => (float[5,1,40] y) <float[7,40] w> { p = MatMul(x, w)  y = Relu(p) }"),
    "rows in front, dynamic": net("front (float[N,1,7] x) => (float[N,1,40] y) <float[7,40] w> { y = MatMul(x, w) }"),
    "softmax over channels": net("""
        channels (float[2,6,5] x) => (float[2,6,5] y) { y = Softmax<axis = 1>(x) }"""),
    "functions": net(
        """
        functions (float[2,37] x) => (float[2,37] a, float[2,37] b, float[2,37] c) {
            a = Erf(x)
            b = Exp(x)
            c = Gelu(x)
        }""",
        opset=20,
    ),
    "relu6": net("""
        relu6 (float[1,3,8,8] x) => (float[1,8,8,8] y) <float[8,3,3,3] w, float l = {0.0}, float h = {0.1}> {
            c = Conv<pads = [1,1,1,1]>(x, w)
            y = Clip(c, l, h)
        }"""),
    "pools": net("""
        pools (float[1,12,8,8] x) => (float[1,12,1,1] y) {
            m = MaxPool<kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]>(x)
            a = AveragePool<kernel_shape = [2,2]>(m)
            y = GlobalAveragePool(a)
        }"""),
    "dense": net("""
        dense (float[1,5,8,8] x) => (float[1,22,8,8] y) <float[12,5,3,3] v, float[5,17,1,1] w> {
            a = Conv<pads = [1,1,1,1]>(x, v)
            r = Relu(a)
            j = Concat<axis = 1>(x, r)
            b = Conv(j, w)
            y = Concat<axis = 1>(j, b)
        }"""),
    "concatenations": net("""
        concatenations (float[2,3,5] x, int64[4] i) => (float[5,3,5] a, float[2,3,12] b, int64[7] c)
            <float[3,3,5] p, float[2,3,7] q, int64[3] j = {7, 8, 9}> {
            a = Concat<axis = 0>(x, p)
            b = Concat<axis = -1>(x, q)
            c = Concat<axis = 0>(i, j)
        }"""),
    "concatenation, large": net("""
        large (float[1,2,300,64] x, float[1,2,300,96] z) => (float[1,2,300,224] y) {
            r = Relu(x)
            s = Relu(z)
            y = Concat<axis = 3>(r, s, x)
        }"""),
    "concatenation, dynamic": net("dynamic (float[N,3] x, float[N,4] z) => (float[N,7] y) { y = Concat<axis = 1>(x, z) }"),
    "focus": net("""
        focus (float[1,3,8,12] x) => (float[1,6,4,6] y) <float[6,12,3,3] w, int64[1] h = {2}, int64[1] v = {3},
            int64[1] o = {0}, int64[1] i = {1}, int64[1] e = {9223372036854775807}, int64[1] s = {2}> {
            even = Slice(x, o, e, h, s)
            odd = Slice(x, i, e, h, s)
            a = Slice(even, o, e, v, s)
            b = Slice(odd, o, e, v, s)
            c = Slice(even, i, e, v, s)
            d = Slice(odd, i, e, v, s)
            j = Concat<axis = 1>(a, b, c, d)
            y = Conv<pads = [1,1,1,1]>(j, w)
        }"""),
    "patches": net("""
        patches (float[2,6,4,5] x) => (float[2,2,4,15] y) <int64[1] h = {1}, int64[1] o = {0}, int64[1] i = {1}, int64[1] t = {2},
            int64[1] e = {6}, int64[1] s = {3}> {
            a = Slice(x, o, e, h, s)
            b = Slice(x, i, e, h, s)
            c = Slice(x, t, e, h, s)
            y = Concat<axis = 3>(a, b, c)
        }"""),
    "slices out of turn": net("""
        slices (float[2,6,4,5] x) => (float[2,3,4,10] y) <int64[1] h = {1}, int64[1] o = {0}, int64[1] i = {1}, int64[1] e = {6},
            int64[1] s = {2}> {
            a = Slice(x, o, e, h, s)
            b = Slice(x, i, e, h, s)
            y = Concat<axis = 3>(b, a)
        }"""),
    "a slice twice": net("""
        slices (float[2,6,4,5] x) => (float[2,3,4,10] y)
            <int64[1] h = {1}, int64[1] o = {0}, int64[1] e = {6}, int64[1] s = {2}> {
            a = Slice(x, o, e, h, s)
            y = Concat<axis = 3>(a, a)
        }"""),
    "heads": net("""
        heads (float[1,4,6,6] x) => (float[1,45,5] y) <float[5,4,1,1] v, float[5,4,2,2] w, int64[3] f = {1, 5, -1}> {
            a = Conv(x, v)
            b = Conv<strides = [2,2]>(x, w)
            p = Reshape(a, f)
            q = Reshape(b, f)
            j = Concat<axis = 2>(p, q)
            y = Transpose<perm = [0,2,1]>(j)
        }"""),
    "heads that are read twice": net("""
        heads (float[1,4,6,6] x) => (float[1,5,45] y, float[45,1,5] z) <float[5,4,1,1] v, float[5,4,2,2] w,
            int64[3] f = {1, 5, -1}, int64[3] g = {1, 5, 9}> {
            a = Conv(x, v)
            b = Conv<strides = [2,2]>(x, w)
            p = Reshape(a, f)
            q = Reshape(b, g)
            y = Concat<axis = 2>(p, q)
            z = Transpose<perm = [2,0,1]>(y)
        }"""),
    "heads that do not fit": net("""
        heads (float[1,4,6,6] x) => (float[1,5,45] y) <float[5,4,1,1] v, float[5,4,2,2] w, int64[3] f = {1, -1, 5}> {
            a = Conv(x, v)
            b = Conv<strides = [2,2]>(x, w)
            p = Reshape(a, f)
            q = Reshape(b, f)
            j = Concat<axis = 1>(p, q)
            y = Transpose<perm = [0,2,1]>(j)
        }"""),
    "plain, dynamic": plain(),
    "residual, dynamic": residual(),
}


def scheduled(network: ModelProto, options: dict[str, object]) -> tuple[Any, Any]:
    """The loops of a network with their schedules, and the target that they are for."""
    from graphprune.exporters import tvm_module

    target = tvm_module.target_of(options)
    return tvm_module.scheduled(tvm_module.lowered(tvm_module.imported(network), target), target), target


def compiled(network: ModelProto, options: dict[str, object], random: dict[str, np.ndarray]) -> list[np.ndarray]:
    from graphprune.exporters import tvm_module
    from graphprune.exporters.tvm_backend import loaded

    module, target = scheduled(network, options)
    assert tvm_module.unscheduled(module) == []
    return loaded(tvm_module.built(module, target), 1)(random)


@with_tvm
@pytest.mark.parametrize("target", ["x86-64", "native"])
@pytest.mark.parametrize("name", NETS)
def test_it_computes_what_onnx_runtime_computes(name: str, target: str) -> None:
    graph = load(NETS[name])
    random = random_inputs(graph)
    expected = run(graph.model, random)
    found = compiled(graph.model, target_options(target), random)
    for value, right in zip(found, expected.values(), strict=True):
        assert value.shape == right.shape
        np.testing.assert_allclose(value, right, rtol=0, atol=1e-5 * float(np.abs(right).max()))


@with_tvm
@pytest.mark.parametrize("name", ["same", "depthwise stride", "groups"])
def test_convolutions_are_packed_where_layouts_cannot_change(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm import relax

    def fails(*_: object) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(relax.transform, "ConvertLayout", lambda layouts: fails)
    graph = load(NETS[name])
    random = random_inputs(graph)
    expected = run(graph.model, random)["y"]
    (found,) = compiled(graph.model, target_options("x86-64"), random)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


@with_tvm
@pytest.mark.parametrize(("name", "paired"), [("few channels", True), ("few ragged channels", True), ("same", False)])
def test_few_channels_take_two_inputs_at_a_time(name: str, paired: bool) -> None:
    module, _ = scheduled(load(NETS[name]).model, target_options("x86-64-v4"))
    assert ("float64" in module.script()) == paired


@with_tvm
@pytest.mark.parametrize(
    ("name", "cores", "shared"), [("large weights", 0, 1), ("large weights", 2, 1), ("large weights", 1, 0), ("same", 2, 0)]
)
def test_threads_share_what_takes_long(name: str, cores: int, shared: int) -> None:
    module, _ = scheduled(load(NETS[name]).model, target_options("x86-64-v4", cores))
    assert module.script().count("T.parallel(") == shared


@with_tvm
@pytest.mark.parametrize(
    ("name", "word", "count"),
    [
        ("focus", "strided_slice", 0),
        ("focus", "concatenation", 0),
        ("patches", "strided_slice", 0),
        ("slices out of turn", "strided_slice", 2),
        ("a slice twice", "strided_slice", 1),
        ("heads", "transpose", 1),
        ("heads that do not fit", "transpose", 4),
    ],
)
def test_movements_that_are_one_are_written_as_one(name: str, word: str, count: int) -> None:
    from graphprune.exporters import tvm_module

    module, _ = scheduled(load(NETS[name]).model, target_options("x86-64"))
    kernels = tvm_module.kernels(module)
    assert sum(word in kernel for kernel in kernels) == count, kernels
