"""The masked oracle: what a plan promises, checked without graphprune.

It reads the plan's JSON and the *imported* model, zeroes in that model's weights the indices that the plan drops on contracted
axes, and compares both models in ONNX Runtime.  Nothing here imports graphprune.  Start reading at `check`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, helper, numpy_helper

Feeds = dict[str, np.ndarray]

SMALLEST_SCALE = 1e-2
"""What a saturated sigmoid leaves is rounding: smaller outputs are compared as if they had this scale."""

QUANTISED = {"QLinearConv": (3, 5), "QLinearMatMul": (3, 5), "QGemm": (3, 5), "ConvInteger": (1, 3), "MatMulInteger": (1, 3)}
"""Where operators on integers have their weight, and its zero point."""

LOW = -1e30
"""A logit that is never chosen."""

CONTRACTED = {"Conv": 1, "FusedConv": 1, "ConvTranspose": 0}
"""The axis of the second operand that is summed over."""


def check(imported: ModelProto, plan: dict[str, Any], pruned: ModelProto, tolerance: float = 1e-5, **options: Any) -> None:
    """Assert that a pruned model computes what the masked imported model computes, on three inputs, and holds nothing else."""
    assert not unread(pruned), "initializers that no node reads: ONNX Runtime warns of each"
    for seed in range(3):
        error, output = max_error(imported, plan, pruned, seed, **options)
        assert error < tolerance, f"output {output!r} differs by {error:.2e} of its scale"


def unread(model: ModelProto) -> set[str]:
    """The initializers that no node reads, and that are no inputs or outputs."""
    graphs, read = [model.graph], {value.name for value in [*model.graph.input, *model.graph.output]}
    for graph in graphs:
        read |= {name for node in graph.node for name in node.input}
        read |= {value.name for value in graph.output}
        graphs += [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return {tensor.name for tensor in model.graph.initializer} - read


def max_error(imported: ModelProto, plan: dict[str, Any], pruned: ModelProto, seed: int = 0, **options: Any) -> tuple[float, str]:
    """The largest difference over the output's scale, and the output where it is."""
    feeds = random_feeds(imported, seed, options.pop("sizes", None))
    expected = run(masked(imported, plan, **options), feeds)
    actual = run(pruned, feeds)
    assert list(expected) == list(actual), "the outputs have other names"
    return max((_error(expected[name], actual[name]), name) for name in expected)


def masked(
    imported: ModelProto, plan: dict[str, Any], silence: bool = False, routers: dict[str, tuple[str, int]] | None = None
) -> ModelProto:
    """The imported model with zeroes wherever the plan drops an index of a contracted axis.

    With `silence` the weights that write a dropped channel are zeroed as well: where activations are summed over without any
    weight (attention scores, ReduceSum), a silent channel is what a removed one is.  `routers` gives, for values with the logits
    of experts along their last axis, the gate and its axis of experts; dropped experts get a logit that is never chosen.
    """
    model = ModelProto()
    model.CopyFrom(imported)
    arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    contracted = contracted_axes(model)
    contracted |= {(m["tensor"], m["axis"]) for group in plan["groups"] for m in group["members"] if m["role"] == "consumer"}
    for name, axes in plan["tensors"].items():
        for text, kept in axes.items():
            axis = int(text)
            if silence or (name, axis) in contracted:
                _zero(arrays, model, name, axis, kept)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    for logits, (gate, axis) in (routers or {}).items():
        low = np.full(arrays[gate].shape[axis], LOW, np.float32)
        low[plan["tensors"].get(gate, {}).get(str(axis), slice(None))] = 0
        _add(model, logits, low)
    return model


def _add(model: ModelProto, value: str, term: np.ndarray) -> None:
    """Add a constant to a value that a node writes."""
    at, node = next((k, node) for k, node in enumerate(model.graph.node) if value in node.output)
    node.output[list(node.output).index(value)] = f"{value}_before"
    model.graph.initializer.append(numpy_helper.from_array(term, f"{value}_term"))
    model.graph.node.insert(at + 1, helper.make_node("Add", [f"{value}_before", f"{value}_term"], [value]))


def contracted_axes(model: ModelProto) -> set[tuple[str, int]]:
    """(initializer, axis) of every input-channel axis of a convolution or matrix product, by the operators' definitions."""
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    dequantised = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    found = set()
    for node in model.graph.node:
        names = [dequantised.get(name, name) for name in node.input]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in CONTRACTED:
            found.add((names[1], CONTRACTED[node.op_type]))
        elif node.op_type == "Gemm":
            found |= {(names[0], 0 if attributes.get("transA") else 1), (names[1], 1 if attributes.get("transB") else 0)}
        elif node.op_type == "MatMul":
            found |= {(names[0], len(shapes.get(names[0], [0])) - 1), (names[1], max(0, len(shapes.get(names[1], [])) - 2))}
    return {(name, axis) for name, axis in found if name in shapes}


def _zero(arrays: dict[str, np.ndarray], model: ModelProto, name: str, axis: int, kept: list[int]) -> None:
    array = arrays[name]
    assert len(set(kept)) == len(kept)
    assert all(0 <= index < array.shape[axis] for index in kept)
    dropped = np.setdiff1d(np.arange(array.shape[axis]), kept)
    where = (slice(None),) * axis + (dropped,)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits" and node.input[1] == name:  # no number needs to be zero, but a scale may be
            arrays[node.input[2]].reshape(array.shape[:2])[where] = 0
            return
    array[where] = _zero_point(arrays, model, name, array)[where]


def _zero_point(arrays: dict[str, np.ndarray], model: ModelProto, name: str, array: np.ndarray) -> np.ndarray:
    """What stands for zero: the zero point of a quantised weight, else 0."""
    for node in model.graph.node:
        weight, at = QUANTISED.get(node.op_type, (0, 0))
        if weight and node.input[weight] == name:
            point = arrays[node.input[at]]
            channels = [-1] + [1] * (array.ndim - 1) if "Conv" in node.op_type else [-1]
            shaped = point.reshape(channels) if point.size > 1 else point.ravel()
            return np.broadcast_to(shaped, array.shape).astype(array.dtype)
        if node.op_type == "DequantizeLinear" and node.input[0] == name and len(node.input) > 2 and node.input[2]:
            point = arrays[node.input[2]]
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            if point.ndim == array.ndim > 0:
                return np.repeat(point, array.shape[axis] // point.shape[axis], axis)
            shape = [-1 if k == axis else 1 for k in range(array.ndim)] if point.size > 1 else [1] * array.ndim
            return np.broadcast_to(point.reshape(shape), array.shape).astype(array.dtype)
    return np.zeros_like(array)


def random_feeds(model: ModelProto, seed: int = 0, sizes: dict[str, int] | None = None) -> Feeds:
    """Random inputs; a symbolic size is 2 for the first axis and 8 for others, unless `sizes` gives it by its name."""
    rng = np.random.default_rng([seed, 77])
    weights = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        known = sizes or {}
        dims = enumerate(kind.shape.dim)
        shape = [d.dim_value if d.dim_value > 0 else known.get(d.dim_param, 8 if axis else 2) for axis, d in dims]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        made = rng.standard_normal(shape) if np.dtype(dtype).kind == "f" else rng.integers(0, 2, shape)
        feeds[value.name] = made.astype(dtype)
    return feeds


def run(model: ModelProto, feeds: Feeds) -> Feeds:
    """All outputs by name; the graph runs as it is written."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _error(expected: np.ndarray, actual: np.ndarray) -> float:
    assert expected.shape == actual.shape, f"shape {actual.shape} instead of {expected.shape}"
    assert expected.dtype == actual.dtype
    if expected.dtype.kind != "f":
        return float(np.mean(expected != actual)) if expected.size else 0.0
    assert np.isfinite(expected).all(), "the masked reference has infinite values: the test's network is at fault"
    scale = np.abs(expected).max(initial=0.0)
    return float(np.abs(expected - actual).max(initial=0.0) / max(scale, SMALLEST_SCALE))
