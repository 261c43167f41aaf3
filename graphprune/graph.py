"""The normalised graph: an indexed view of an ONNX ModelProto.

The ModelProto itself stays the single owner of nodes, initializers, names, doc strings and metadata, so that whatever
graphprune does not change survives byte for byte (docs/decisions/0001-graph-over-modelproto.md).  `Graph` adds what
the passes ask for: producers and consumers, shapes, constants as arrays.  The invariants of a normalised graph are
checked by `graphprune.normalize`.  Start reading at `Graph`.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .external import is_external, mapped, memory_map
from .lent import lent_to

if TYPE_CHECKING:
    from .given import Given

Dim = int | str | None
"""A dimension: a size, the name of a symbolic size, or unknown."""

Shape = tuple[Dim, ...]
Array = NDArray[Any]

DEFAULT_DOMAINS = ("", "ai.onnx")

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""The floating-point types of 16 bits."""

FLOATS = (*HALVES, TensorProto.FLOAT, TensorProto.DOUBLE)
"""The floating-point types that networks compute with."""

SHAPE_SIZED = 4096
"""Constants of up to this many elements may be shapes, which shape inference follows: their values are always at hand."""


class Use(NamedTuple):
    """One place where a value is read: the node's position in the graph and the input's position in the node."""

    node: int
    input: int


class Graph:
    """A ModelProto with indices.

    Shapes are filled by `graphprune.normalize`; a value without an entry has an unknown shape.
    Nodes are addressed by their position in topological order.
    """

    def __init__(self, model: ModelProto, shapes: dict[str, Shape] | None = None, sized: dict[str, Shape] | None = None) -> None:
        self.model = model
        self.shapes: dict[str, Shape] = shapes if shapes is not None else {}
        self.sized: dict[str, Shape] = sized if sized is not None else self.shapes
        """The shapes for typical sizes of the dynamic dimensions and one sample: what costs are counted with."""
        self.given: Given | None = None
        """The model as it was before it was normalised, where that is at hand."""
        self._arrays: dict[str, Array] = {}
        self._lent = lent_to(model)

    @property
    def nodes(self) -> Sequence[NodeProto]:
        """All nodes of the main graph, in topological order."""
        nodes: Sequence[NodeProto] = self.model.graph.node
        return nodes

    @cached_property
    def initializers(self) -> dict[str, TensorProto]:
        """The initializers by name."""
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @cached_property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The network's inputs that are not initializers."""
        return [value for value in self.model.graph.input if value.name not in self.initializers]

    @cached_property
    def names(self) -> set[str]:
        """The names that are taken; who takes another adds it (`free_name`)."""
        return value_names(self.model.graph)

    @cached_property
    def overridable(self) -> set[str]:
        """Initializers that the network's caller may replace: they are listed among the inputs."""
        return {value.name for value in self.model.graph.input if value.name in self.initializers}

    @property
    def outputs(self) -> Sequence[onnx.ValueInfoProto]:
        """The network's outputs."""
        outputs: Sequence[onnx.ValueInfoProto] = self.model.graph.output
        return outputs

    @cached_property
    def element_types(self) -> dict[str, int]:
        """The element type of each value that has one, initializers included."""
        values = [*self.model.graph.value_info, *self.model.graph.input, *self.model.graph.output]
        found = {value.name: value.type.tensor_type.elem_type for value in values}
        return found | {name: tensor.data_type for name, tensor in self.initializers.items()}

    def element_type(self, name: str) -> int:
        """The element type of a value; float32 where it is not known."""
        return self.element_types.get(name, TensorProto.FLOAT)

    @cached_property
    def uses(self) -> dict[str, list[Use]]:
        """Where each value is read by a node of the main graph."""
        uses: dict[str, list[Use]] = defaultdict(list)
        for position, node in enumerate(self.nodes):
            for index, name in enumerate(node.input):
                if name:
                    uses[name].append(Use(position, index))
        return dict(uses)

    @cached_property
    def read_elsewhere(self) -> set[str]:
        """Values that are read otherwise than as an input of a node: the network's outputs, and what bodies of Loops capture."""
        captured = {name for node in self.nodes for body in subgraphs(node) for name in captured_names(body)}
        return captured | {value.name for value in self.outputs}

    @cached_property
    def producers(self) -> dict[str, int]:
        """The position of the node that writes each value."""
        return {name: position for position, node in enumerate(self.nodes) for name in node.output if name}

    @cached_property
    def opsets(self) -> dict[str, int]:
        """The imported version of each domain; the default domain is ""."""
        return {canonical_domain(entry.domain): entry.version for entry in self.model.opset_import}

    def constant(self, name: str) -> Array | None:
        """The value of an initializer as an array (do not write to it), or None if `name` is none, or callers may replace it."""
        if name not in self.initializers or name in self.overridable:
            return None
        if is_external(self.initializers[name]):
            return to_array(self.initializers[name])  # not kept: what is mapped counts as memory in use
        if name not in self._arrays:
            self._arrays[name] = to_array(self.initializers[name])
        return self._arrays[name]

    def learning(self) -> Graph:
        """The same graph with shapes of its own, which may learn more."""
        other = copy.copy(self)
        other.shapes, other.sized, other.given = dict(self.shapes), dict(self.sized), None
        return other

    def learn(self, name: str, sizes: Sequence[int | None]) -> None:
        """Note sizes of a value that shape inference does not know."""
        for known in (self.shapes, self.sized):
            shape = known.get(name, (None,) * len(sizes))
            if len(shape) == len(sizes):
                known[name] = tuple(
                    dim if size is None or isinstance(dim, int) else size for dim, size in zip(shape, sizes, strict=True)
                )

    def forget_constants(self) -> None:
        """Drop the cached arrays, so that memory stays bounded by the model's size."""
        self._arrays.clear()

    def shape(self, name: str) -> Shape | None:
        """The shape of a value, or None where even the rank is unknown."""
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        return self.shapes.get(name)

    def typical_size(self, name: str, axis: int) -> int:
        """The size of an axis that costs are counted with; 1 where none can be told."""
        shape = self.shape(name) if name in self.initializers else self.sized.get(name)
        dim = shape[axis] if shape is not None and axis < len(shape) else None
        return dim if isinstance(dim, int) else 1


def copy_model(model: ModelProto, without: Sequence[str]) -> ModelProto:
    """A copy that leaves out the named fields of the graph (`initializer`, `value_info`), never touching what is in them."""
    result = ModelProto()
    copy_fields(model, result, ("graph",))
    copy_fields(model.graph, result.graph, without)
    return result


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Let a graph have these nodes, some of which may be its own."""
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def copy_fields(source: Any, target: Any, without: Sequence[str]) -> None:
    """Copy the fields of a message that are set, but for those named."""
    for field, value in source.ListFields():
        if field.name in without:
            continue
        current = getattr(target, field.name)
        if hasattr(current, "extend"):
            current.extend(value)
        elif hasattr(current, "CopyFrom"):
            current.CopyFrom(value)
        else:
            setattr(target, field.name, value)


def with_outputs(model: ModelProto, names: Iterable[str], types: Mapping[str, int]) -> ModelProto:
    """A copy of a model with further values, of these element types, as outputs."""
    result = ModelProto()
    result.CopyFrom(model)
    known = {value.name for value in model.graph.output}
    for name in names:
        if name not in known:
            result.graph.output.add(name=name).type.tensor_type.elem_type = types[name]
    return result


def free_name(name: str, taken: set[str]) -> str:
    """The name, or with the first number at which it is not taken; it is taken then."""
    free = unused_name(name, taken)
    taken.add(free)
    return free


def unused_name(name: str, taken: Container[str]) -> str:
    """The name, or with the first number at which it is not taken."""
    number, free = 0, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def value_names(graph: GraphProto) -> set[str]:
    """The names of all values of a graph and of the bodies inside of it."""
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    names |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        names.update(name for name in node.output if name)
        for body in subgraphs(node):
            names |= value_names(body)
    return names


def canonical_domain(domain: str) -> str:
    """ONNX's two spellings of the default domain, as one."""
    return "" if domain in DEFAULT_DOMAINS else domain


def operator_name(node: NodeProto) -> str:
    """`Conv` for the default domain, `com.microsoft::FusedConv` for others."""
    domain = canonical_domain(node.domain)
    return f"{domain}::{node.op_type}" if domain else node.op_type


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node as Python values."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def to_array(tensor: TensorProto) -> Array:
    """An initializer as a numpy array; external data is mapped into memory, not read."""
    if not is_external(tensor):
        return numpy_helper.to_array(tensor)
    if item_bits(tensor.data_type) >= 8:
        return mapped(tensor)
    packed = TensorProto(data_type=tensor.data_type, dims=tensor.dims)
    length = -(-element_count(tensor) * item_bits(tensor.data_type) // 8)
    packed.raw_data = memory_map(tensor, np.dtype(np.uint8), (length,)).tobytes() if length else b""
    return numpy_helper.to_array(packed)


def element_count(tensor: TensorProto) -> int:
    """The number of elements that the dimensions of a tensor declare."""
    count = 1
    for size in tensor.dims:
        count *= size
    return count


@cache
def item_bits(data_type: int) -> int:
    """Bits per element of an ONNX data type (4-bit types are packed two to a byte); 0 for strings."""
    if data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return 0
    name = TensorProto.DataType.Name(data_type)
    for suffix, bits in (("INT4", 4), ("E2M1", 4), ("INT2", 2)):
        if name.endswith(suffix):
            return bits
    return int(np.dtype(helper.tensor_dtype_to_np_dtype(data_type)).itemsize) * 8


def is_parameter(tensor: TensorProto) -> bool:
    """Whether an initializer counts as a parameter: numbers that training or quantisation may have set.

    64-bit integers are shapes and indices; 32-bit ones may be the biases of a quantised layer.
    """
    return tensor.data_type not in (
        TensorProto.INT64,
        TensorProto.UINT32,
        TensorProto.UINT64,
        TensorProto.BOOL,
        TensorProto.STRING,
    )


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that a control-flow node holds in its attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node of a model, those of subgraphs and functions included, in no order."""
    pending = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(inner for body in subgraphs(node) for inner in body.node)


def captured_names(graph: GraphProto) -> set[str]:
    """Names that a subgraph reads from the graphs around it."""
    local = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    local |= {tensor.values.name for tensor in graph.sparse_initializer}
    captured: set[str] = set()
    for node in graph.node:
        read = {name for name in node.input if name}
        for inner in subgraphs(node):
            read |= captured_names(inner)
        captured |= read - local
        local |= set(node.output)
    return captured | ({value.name for value in graph.output} - local)


def node_reads(node: NodeProto) -> set[str]:
    """Every value that a node reads, those captured by its subgraphs included."""
    read = {name for name in node.input if name}
    for inner in subgraphs(node):
        read |= captured_names(inner)
    return read


def declared_shape(value: onnx.ValueInfoProto) -> Shape | None:
    """The shape that a value_info declares, or None where it declares none."""
    kind = value.type
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return tuple([_dim(dim) for dim in kind.tensor_type.shape.dim])


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    size: int = dim.dim_value
    if size > 0:
        return size
    if dim.HasField("dim_value"):
        return None if size else 0
    return dim.dim_param or None
