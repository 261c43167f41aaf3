"""A model as a differentiable function of its weights, in torch.

Gradient criteria and the output-matching repair need derivatives; ONNX Runtime gives none.  The nodes are run one by one with the
functions of `graphprune.torch_operators`.  Needs the extra `torch`.  Start reading at `Differentiable`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from .errors import CalibrationError, first_line
from .extras import need
from .graph import HALVES, Array, Graph, attributes, canonical_domain, operator_name, to_array
from .widening import is_narrow, widened

if TYPE_CHECKING:
    from .torch_functions import Node

Tensor = Any


class Differentiable:
    """The outputs of a model as functions of its float weights, which are torch tensors by name.

    Raises MissingExtraError without torch and CalibrationError for operators that have no torch function.
    """

    def __init__(self, model: ModelProto) -> None:
        torch = need("torch")
        from .torch_functions import Node
        from .torch_operators import FUNCTIONS

        graph = Graph(model)
        self.nodes = list(graph.nodes)
        self.opsets = graph.opsets
        missing = sorted({operator_name(node) for node in self.nodes} - set(FUNCTIONS))
        if missing:
            raise _no_gradients(f"operators without a torch function: {', '.join(missing)}")
        self.outputs = [value.name for value in model.graph.output]
        self.values = {name: torch.from_numpy(np.array(to_array(tensor))) for name, tensor in graph.initializers.items()}
        self.read = {name for node in self.nodes for name in node.input if name} | set(self.outputs)
        self._calls = [(FUNCTIONS[operator_name(node)], self._described(node, Node)) for node in self.nodes]
        self._dead = self._last_uses()

    @property
    def names(self) -> set[str]:
        """The values that nodes give."""
        return {name for node in self.nodes for name in node.output if name}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The float weights with more than one element, by name; set `requires_grad` on those to derive by."""
        return {name: value for name, value in self.values.items() if value.is_floating_point() and value.numel() > 1}

    def __call__(self, feeds: Mapping[str, Array], wanted: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The outputs, or the values in `wanted`, for arrays by input name."""
        torch = need("torch")
        values = self.values | {name: torch.as_tensor(value) for name, value in feeds.items()}
        wanted = set(self.outputs if wanted is None else wanted)
        found = {name: values[name] for name in wanted if name in values}
        for node, (function, described), dead in zip(self.nodes, self._calls, self._dead, strict=True):
            values |= self._results(node, function, described, [values[name] if name else None for name in node.input])
            found |= {name: values[name] for name in node.output if name in wanted}
            for name in dead:
                del values[name]
        return found

    def _results(self, node: NodeProto, function: Any, described: Node, inputs: list[Tensor]) -> dict[str, Tensor]:
        try:
            found = function(described, *inputs)
        except (
            RuntimeError,
            TypeError,
            IndexError,
            ValueError,
        ) as error:  # torch's for types and sizes; NotImplementedError is the first
            raise _no_gradients(f"{node.op_type} {node.name!r}: {first_line(error)}") from error
        results = found if isinstance(found, list | tuple) else (found,)
        if self.read & set(node.output[len(results) :]):
            raise _no_gradients(f"{node.op_type} {node.name!r}: results after the first")
        return {name: result for name, result in zip(node.output, results, strict=False) if name}

    def _described(self, node: Any, kind: type[Node]) -> Node:
        values = {name: _plain(value) for name, value in attributes(node).items()}
        return kind(values, self.opsets.get(canonical_domain(node.domain), 1), len(node.output))

    def _last_uses(self) -> list[list[str]]:
        """What no later node reads, node by node."""
        last: dict[str, int] = {}
        for position, node in enumerate(self.nodes):
            last |= {name: position for name in (*node.input, *node.output) if name and name not in self.values}
        dead: list[list[str]] = [[] for _ in self.nodes]
        for name, position in last.items():
            dead[position].append(name)
        return dead


class InSinglePrecision(Differentiable):
    """A model as it would be in float32, where it holds or makes floats of 16 bits: squares and small steps are lost in these."""

    def __init__(self, model: ModelProto) -> None:
        super().__init__(widened(model, HALVES) if is_narrow(model, HALVES) else model)

    def __call__(self, feeds: Mapping[str, Array], wanted: Iterable[str] | None = None) -> dict[str, Tensor]:
        """As for any model; samples of 16 bits become wider."""
        return super().__call__({name: _wide(value) for name, value in feeds.items()}, wanted)


def _wide(value: Array) -> Array:
    half = value.dtype == np.float16 or value.dtype.name == "bfloat16"
    return value.astype(np.float32) if half else value


def _no_gradients(why: str) -> CalibrationError:
    return CalibrationError(f"no gradients for this model: {why}; use passes that need none, such as --recipe balanced")


def _plain(value: Any) -> Any:
    """An attribute's value without ONNX's own types."""
    if isinstance(value, bytes):
        return value.decode()
    return to_array(value) if isinstance(value, TensorProto) else value
