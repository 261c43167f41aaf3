"""Networks of bfloat16, which ONNX Runtime does not run on processors, in float32, where all of their numbers are exact.

Both sides of a proof are widened alike: what a Cast to bfloat16 would round stays as it is in both.  Passes that run the network,
and gradients, see a wide twin; what repairs change is rounded again.  Start reading at `widened`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, TypeProto, numpy_helper

from . import external
from .graph import Graph, all_nodes, copy_model, subgraphs, to_array
from .model_file import all_tensors, tensors_of

Kinds = Collection[int]
"""Data types of ONNX that are narrower than float32."""

NOT_RUN: Kinds = (TensorProto.BFLOAT16,)
"""Those that ONNX Runtime does not compute with on processors."""

WIDE = TensorProto.FLOAT

TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "softmax_precision", "stash_type")
"""Those of ONNX's operators that name a data type."""


def is_narrow(model: ModelProto, kinds: Kinds = NOT_RUN) -> bool:
    """Whether a model has values or weights of such types."""
    tensors = any(tensor.data_type in kinds for tensor in _tensors(model))
    return tensors or any(each.elem_type in kinds for each in _types(model)) or any(_casts(model, kinds))


def widened(model: ModelProto, kinds: Kinds = NOT_RUN) -> ModelProto:
    """A copy that computes in float32 what the model computes in such types; weights that are in files stay there."""
    result = copy_model(model, without=())
    for tensor in [tensor for tensor in _tensors(result) if tensor.data_type in kinds]:
        tensor.CopyFrom(_wide(tensor))
    for each in _types(result):
        if each.elem_type in kinds:
            each.elem_type = WIDE
    for attribute in _casts(result, kinds):
        attribute.i = WIDE
    return result


def as_run(graph: Graph) -> Graph:
    """The graph as ONNX Runtime runs it on processors: its wide twin, or itself where that is needed nowhere."""
    return Graph(widened(graph.model), graph.shapes, graph.sized) if is_narrow(graph.model) else graph


def _wide(tensor: TensorProto) -> TensorProto:
    if external.is_external(tensor) and external.type_in_file(tensor) == tensor.data_type:
        return external.cast(tensor, WIDE)
    return numpy_helper.from_array(to_array(tensor).astype(np.float32), tensor.name)


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from all_tensors(model.graph)
    for function in model.functions:
        yield from tensors_of(function.node)


def _casts(model: ModelProto, kinds: Kinds) -> Iterator[AttributeProto]:
    """The attributes that ask for such types."""
    for node in all_nodes(model):
        yield from (each for each in node.attribute if each.name in TYPE_ATTRIBUTES and each.i in kinds)


def _types(model: ModelProto) -> Iterator[TypeProto.Tensor]:
    graphs: list[GraphProto] = [model.graph, *(graph for node in all_nodes(model) for graph in subgraphs(node))]
    for graph in graphs:
        for value in [*graph.input, *graph.output, *graph.value_info]:
            kind = value.type
            while (holder := kind.WhichOneof("value")) in ("sequence_type", "optional_type"):
                kind = getattr(kind, holder).elem_type
            if kind.HasField("tensor_type"):
                yield kind.tensor_type
    for function in model.functions:
        yield from (value.type.tensor_type for value in function.value_info if value.type.HasField("tensor_type"))
