"""Repairs with a closed form, against least squares and statistics worked out from the samples."""

from __future__ import annotations

import numpy as np
import pytest
from nets import initializer, net, set_initializer
from onnx import ModelProto

import graphprune
from graphprune.runtime import run

RNG = np.random.default_rng(11)


def dense() -> ModelProto:
    return net("""
        dense (float[N,6] x) => (float[N,3] y)
        <float[9,6] a, float[9] b, float[3,9] c, float[3] d> {
            p = Gemm<transB = 1>(x, a, b)
            q = Relu(p)
            y = Gemm<transB = 1>(q, c, d)
        }""")


def rows(count: int = 4000) -> dict[str, np.ndarray]:
    return {"x": RNG.normal(size=(count, 6)).astype(np.float32)}


def pruned(model: ModelProto, feeds: dict[str, np.ndarray], repair: str) -> graphprune.Result:
    return graphprune.prune(model, targets="channels=0.6", calibration=feeds, repair=repair, importance="magnitude", align=1)


def hidden(model: ModelProto, x: np.ndarray) -> np.ndarray:
    return np.maximum(x.astype(np.float64) @ initializer(model, "a").T + initializer(model, "b"), 0)


def test_absorb_adds_what_is_gone_on_average() -> None:
    model, feeds = dense(), rows()
    result = pruned(model, feeds, "absorb")
    kept = result.keep["a:0"]
    gone = sorted(set(range(9)) - set(kept))
    mean = hidden(model, feeds["x"]).mean(axis=0)
    expected = initializer(model, "d") + initializer(model, "c")[:, gone] @ mean[gone]
    np.testing.assert_allclose(result.weights["d"], expected, rtol=1e-3)
    np.testing.assert_allclose(result.weights["c"], initializer(model, "c")[:, kept], rtol=1e-6)
    wanted, given = run(model, feeds)["y"], run(result.model, feeds)["y"]
    np.testing.assert_allclose(wanted.mean(axis=0), given.mean(axis=0), atol=0.02)


@pytest.mark.parametrize("repair", ["obs{damping=1e-9}", "interpolate{damping=1e-9}"])
def test_the_update_is_least_squares_where_one_layer_reads(repair: str) -> None:
    model, feeds = dense(), rows()
    result = pruned(model, feeds, repair)
    q, kept = hidden(model, feeds["x"]), result.keep["a:0"]
    wanted = q @ initializer(model, "c").T.astype(np.float64) + initializer(model, "d")
    basis = np.column_stack([q[:, kept], np.ones(len(q))])
    best = np.linalg.lstsq(basis, wanted, rcond=None)[0]
    np.testing.assert_allclose(result.weights["c"], best[:-1].T, atol=0.02)
    np.testing.assert_allclose(result.weights["d"], best[-1], atol=0.02)


@pytest.mark.parametrize("repair", ["absorb", "obs", "interpolate", "statistics"])
def test_every_repair_helps_a_convolution(repair: str) -> None:
    model = net("""
        images (float[N,2,7,6] x) => (float[N,3,4,3] y)
        <float[8,2,3,3] a, float[8] b, float[3,8,3,3] c, float[3] d> {
            p = Conv<pads = [1, 1, 1, 1]>(x, a, b)
            q = Relu(p)
            y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(q, c, d)
        }""")
    feeds = {"x": RNG.normal(size=(256, 2, 7, 6)).astype(np.float32)}
    result = pruned(model, feeds, repair)
    assert result.proof is not None
    assert result.proof.passed
    wanted, given = run(model, feeds)["y"], run(result.model, feeds)["y"]
    bare = graphprune.prune(model, targets="channels=0.6", importance="magnitude", align=1)
    assert bare.keep == result.keep
    assert ((wanted - given) ** 2).mean() < 0.95 * ((wanted - run(bare.model, feeds)["y"]) ** 2).mean()


def test_a_mixture_of_channels_is_one_for_all_kernel_positions() -> None:
    """Twins in front of a kernel of three: the reader of what is left gets the sum of both kernels."""
    model = net("""
        twins (float[N,2,9] x) => (float[N,3,9] y) <float[4,2,1] a, float[3,4,3] c> {
            p = Conv(x, a)
            y = Conv<pads = [1, 1]>(p, c)
        }""")
    a = initializer(model, "a").copy()
    a[2:] = a[:2]
    set_initializer(model, "a", a)
    feeds = {"x": RNG.normal(size=(3000, 2, 9)).astype(np.float32)}
    result = graphprune.prune(
        model, targets=(), ratios="^a$=0.5", calibration=feeds, repair="interpolate{damping=1e-8}", importance="obspa", align=1
    )
    assert {k % 2 for k in result.keep["a:0"]} == {0, 1}
    np.testing.assert_allclose(run(result.model, feeds)["y"], run(model, feeds)["y"], atol=0.02)


def test_statistics_are_those_of_the_original() -> None:
    model, feeds = dense(), rows()
    result = pruned(model, feeds, "statistics")
    wanted, given = run(model, feeds)["y"], run(result.model, feeds)["y"]
    np.testing.assert_allclose(given.mean(axis=0), wanted.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(given.std(axis=0), wanted.std(axis=0), rtol=1e-3)
    ratio = result.weights["c"] / initializer(model, "c")[:, result.keep["a:0"]]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-4)
