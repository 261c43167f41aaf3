"""Computing constants ahead of time, by onnxscript, with bounds: a file of a few bytes can describe constants of any size.

Start reading at `Folding.fold`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, TensorProto

from .external import is_external, set_location
from .graph import canonical_domain, element_count, node_reads, to_array
from .limits import factor, paused
from .quiet import quiet

if TYPE_CHECKING:
    import onnx_ir as ir

FOLD_LIMIT = 2**24
"""Constants of more elements than this are not computed ahead of time."""

WORK = 2**24
"""Elements read and written in all, beside `STEPS` times those of the model's own constants."""

STEPS = 32
"""What weights are computed from weights in: weight standardisation reads and writes each element some 20 times."""

HELD = 2**27
"""Elements of large results at a time, where weights stay in their files: the model need not fit into memory."""

LARGE = 2**17
"""Elements of a large result."""

SLOW = 256
"""Operators that onnx computes in Python take about this much longer for each element than those of numpy."""

_LOGGER = "onnxscript.optimizer._constant_folding"
"""Warns of what cannot be computed, which then stays as it is."""

NEVER_FOLDED = ("QuantizeLinear", "DequantizeLinear", "Bernoulli", "Dropout", "Multinomial")
"""Scales say what is quantised; the others may draw random numbers."""

_FAST = frozenset(
    """Abs Add And BatchNormalization Cast CastLike Ceil Concat ConstantOfShape Cos Div Equal Erf Exp Expand Flatten Floor Gather
    GatherND Greater GreaterOrEqual Identity Less LessOrEqual Log Max Mean Min Mul Neg NonZero Not Or Pow Range Reciprocal
    ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round Shape Sigmoid Sign
    Sin Size Slice Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Trilu Unsqueeze Where Xor""".split()  # noqa: SIM905
)
"""Operators that numpy computes in one step."""

_NO_LARGER = frozenset(("Compress", "NonZero", "Unique"))
"""Operators whose results have a size that hangs on values, but at most that of the operand (times its rank)."""


def foldable(model: ModelProto) -> bool:
    """Whether some node computes a constant: all its inputs are constants, or it reads a shape."""
    constants = {tensor.name for tensor in model.graph.initializer}
    ties = ties_of(model)
    for node in model.graph.node:
        if node.op_type in NEVER_FOLDED or canonical_domain(node.domain):
            continue
        if node.op_type == "Shape":
            return True
        if node.input and all(name in constants for name in node.input if name) and not ties & set(node.output):
            return True
    return False


def ties_of(model: ModelProto) -> set[str]:
    """What Transposes give matrix products of matrices that others read as they are, such as an embedding that is the last layer.

    They stay: such a result would be a second copy of the weight, with a life of its own.
    """
    turned = [node for node in model.graph.node if node.op_type == "Transpose"]
    readers: dict[str, set[str]] = defaultdict(set)
    for node in model.graph.node if turned else ():
        for name in node_reads(node):
            readers[name].add(node.op_type)
    return {node.output[0] for node in turned if readers[node.output[0]] == {"MatMul"} and readers[node.input[0]] - {"Transpose"}}


class Folding:
    """What may still be computed of one model's constants."""

    def __init__(self, model: ModelProto) -> None:
        self._ties: set[str] = set()
        self._left = factor() * (WORK + STEPS * sum(map(element_count, model.graph.initializer)))
        self._room = HELD if any(map(is_external, model.graph.initializer)) else self._left
        self._large: dict[str, int] = {}

    def fold(self, model: ModelProto) -> ModelProto | None:
        """The model with constants computed; None where onnx_ir, which is stricter than ONNX in places, does not take it."""
        with paused():  # they take longer to import than most models to fold
            import onnx_ir as ir
            from onnxscript.optimizer import fold_constants

        self._ties = ties_of(model)
        try:
            with _places_as_onnx_has_them(model) as places:
                wrapped = ir.serde.deserialize_model(model)
            with quiet(_LOGGER), _readable(wrapped, model):
                fold_constants(wrapped, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT, should_fold=self._should_fold)
            folded = ir.serde.serialize_model(wrapped)
            _put_back(folded, places)
            return folded
        except (ir.serde.SerdeError, ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError):
            return None

    def _should_fold(self, node: ir.Node) -> bool | None:
        if node.op_type in NEVER_FOLDED or any(value.name in self._ties for value in node.outputs):
            return False
        read = sum(_size(value) or 0 for value in node.inputs if value is not None)
        written = _elements_written(node, read)
        if written is None or written > FOLD_LIMIT:
            return False
        work = (read + written) * (1 if node.op_type in _FAST else SLOW)
        if work > self._left or LARGE < written > self._room:
            return False
        self._left -= work
        self._room += sum(self._large.get(value.name or "", 0) for value in _read_last(node))
        if written > LARGE:
            self._room -= written
            self._large |= {value.name: _size(value) or 0 for value in node.outputs if value.name}
        return True if node.op_type == "ConstantOfShape" else None


def _read_last(node: ir.Node) -> set[ir.Value]:
    """What no other node reads: onnxscript lets go of it when this one is folded."""
    return {value for value in node.inputs if value is not None and {use.node for use in value.uses()} == {node}}


@contextmanager
def _readable(wrapped: ir.Model, model: ModelProto) -> Iterator[None]:
    """Meanwhile weights that are still in a file are read where they are asked for; onnx_ir cannot tell where they are.

    What cannot be read would be computed with as if it were absent.
    """
    import onnx_ir as ir

    def reader(tensor: TensorProto) -> ir.LazyTensor:
        kind, shape = ir.DataType(tensor.data_type), ir.Shape(tensor.dims)
        return ir.LazyTensor(lambda: ir.Tensor(to_array(tensor), kind, name=tensor.name), kind, shape, name=tensor.name)

    values = wrapped.graph.initializers
    places = {tensor.name: values[tensor.name].const_value for tensor in model.graph.initializer if is_external(tensor)}
    for tensor in model.graph.initializer:
        if tensor.name in places:
            values[tensor.name].const_value = reader(tensor)
    yield
    for name in places.keys() & values.keys():
        values[name].const_value = places[name]


@contextmanager
def _places_as_onnx_has_them(model: ModelProto) -> Iterator[dict[str, TensorProto]]:
    """Meanwhile weights that are in a file say no more of it than ONNX defines; what they say otherwise, by name."""
    places: dict[str, TensorProto] = {}
    for tensor in filter(is_external, model.graph.initializer):
        places[tensor.name] = TensorProto(external_data=tensor.external_data)
        set_location(tensor, "file")
    try:
        yield places
    finally:
        _put_back(model, places)


def _put_back(model: ModelProto, places: Mapping[str, TensorProto]) -> None:
    for tensor in model.graph.initializer:
        if tensor.name in places:
            del tensor.external_data[:]
            tensor.external_data.extend(places[tensor.name].external_data)


def _elements_written(node: ir.Node, read: int) -> int | None:
    """How many elements a node of constants writes; None where that is not known."""
    if node.op_type == "ConstantOfShape":
        return _product(node.inputs[0])
    sizes = [_size(value) for value in node.outputs if value.name]
    if None not in sizes:
        return sum(size for size in sizes if size is not None)
    if node.op_type in _NO_LARGER:
        return 64 * read
    return None


def _product(value: ir.Value | None) -> int | None:
    """The number of elements of a shape that is a constant."""
    if value is None or value.const_value is None or value.const_value.size > 64:
        return None
    sizes = np.asarray(value.const_value.numpy(), np.float64)
    return None if (sizes < 0).any() else int(min(float(np.prod(sizes)), 2.0**62))


def _size(value: ir.Value) -> int | None:
    """The number of elements of a value."""
    if value.const_value is not None:
        return int(value.const_value.size)
    count = 1
    for dim in (None,) if value.shape is None else value.shape:
        if not isinstance(dim, int):
            return None
        count *= max(0, dim)
    return count
