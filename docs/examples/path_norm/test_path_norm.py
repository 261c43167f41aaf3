"""The score against numbers worked out by hand, and the way in through the registry."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from path_norm import PathNorm

from graphprune import analyze, registry
from graphprune.evidence import Evidence


def two_layers() -> onnx.ModelProto:
    """Two layers: x [1,2] -> Gemm -> h [1,3] -> Gemm -> y [1,1]; the weights of h are easy to add up."""
    first = np.array([[1, 2, 0], [0, -1, 5]], np.float32)
    second = np.array([[3], [2], [-1]], np.float32)
    nodes = [helper.make_node("Gemm", ["x", "first"], ["h"]), helper.make_node("Gemm", ["h", "second"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])
    weights = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")]
    graph = helper.make_graph(nodes, "two_layers", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_written_times_read() -> None:
    """Score of unit c: row sums of what writes it times what reads it."""
    analysis = analyze(two_layers())
    (group,) = analysis.groups
    score = PathNorm(normalizer="none").score(group, Evidence.of(analysis))
    np.testing.assert_allclose(score, [1 * 3, 3 * 2, 5 * 1])


def test_spec() -> None:
    """The command line finds it, with its options."""
    assert registry.make("importance", "path_norm{p=2}") == PathNorm(p=2)
