"""A module made of a graph: the way out where a module's own code cannot follow a plan.

Its parameters and buffers are those of the user's module, under the same names, so state dicts go both ways.  The nodes run one
by one (`graphprune.differentiable`).  Start reading at `GraphModule.forward`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as tree

from graphprune.differentiable import Differentiable
from graphprune.errors import CalibrationError, UsageError
from graphprune.graph import Array, Graph, copy_model, to_array
from graphprune.torch_functions import Node

from .arguments import Arguments

Tensor = Any


class GraphModule(nn.Module):  # type: ignore[misc]
    """Runs the nodes of an ONNX graph on parameters that can be trained.

    Called as the module that it was made from, it returns the same structure.  In training mode batch normalisation uses the
    batch's statistics and updates its own; there is no dropout.
    """

    def __init__(
        self,
        model: ModelProto,
        by_batch: Mapping[str, Any],
        state: Mapping[str, Tensor],
        inputs: list[str],
        arguments: Arguments,
        results: Any,
    ) -> None:
        """`by_batch` says which constants depend on the batch, as `batch_dependent` gives it.

        `state`: parameters and buffers by name; `inputs`: the graph's inputs in the order of the tensors in `arguments`, which
        says what `forward` was traced with.

        `results` is the structure of what `forward` returns, as (leaves, spec) of torch's pytree with None for each tensor.
        Raises UsageError where the graph has operators without a torch function.
        """
        super().__init__()
        for name, tensor in state.items():
            self._add(name, tensor)
        self._inputs, self._arguments, self._results = inputs, arguments, results
        self._constants: list[str] = []
        for tensor in model.graph.initializer:
            if tensor.name not in state:
                self.register_buffer(f"_constant{len(self._constants)}", torch.tensor(to_array(tensor)), persistent=False)
                self._constants.append(tensor.name)
        self._batch = _batch(model, inputs)
        self._by_batch = dict(by_batch)
        self._read = [name for name in state if name in Graph(model).initializers]
        self._structure = copy_model(model, without=["initializer", "value_info"]).SerializeToString()
        self._prepare()

    def forward(self, *positional: Any, **named: Any) -> Any:
        """The module's results.  Raises UsageError for other arguments than the module was traced with, but for the tensors."""
        given = self._arguments.tensors(positional, named)
        batch = next((each.shape[0] for each in given if each.dim()), self._batch)
        constants = {name: self._constant(k, batch) for k, name in enumerate(self._constants)}
        found = self._runner(
            dict(zip(self._inputs, given, strict=True)) | constants | {name: self._tensor(name) for name in self._read}
        )
        leaves, spec = self._results
        fresh = iter(found[name] for name in self._runner.outputs)
        return tree.tree_unflatten([next(fresh) if leaf is None else leaf for leaf in leaves], spec)

    def _add(self, name: str, tensor: Tensor) -> None:
        path, _, last = name.rpartition(".")
        place: Any = self
        for part in path.split(".") if path else ():
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place._modules[part]
        if isinstance(tensor, nn.Parameter):
            place.register_parameter(last, tensor)
        else:
            place.register_buffer(last, tensor)

    def _constant(self, number: int, batch: int) -> Tensor:
        """A constant of the graph, for this batch."""
        value = getattr(self, f"_constant{number}")
        where = self._by_batch.get(self._constants[number])
        if where is None or batch == self._batch:
            return value
        if where == "rows":
            return value[:1].expand(len(value) * batch // self._batch, *value.shape[1:])
        return torch.where(torch.as_tensor(where, device=value.device), value * batch // self._batch, value)

    def _tensor(self, name: str) -> Tensor:
        path, _, last = name.rpartition(".")
        return getattr(self.get_submodule(path), last)

    def _prepare(self) -> None:
        try:
            self._runner = Differentiable(ModelProto.FromString(self._structure))
        except CalibrationError as error:
            reason = str(error).partition(": ")[2].partition(";")[0]
            raise UsageError(f"no module can be made of the graph: {reason}") from error
        calls = zip(self._runner.nodes, self._runner._calls, strict=True)
        self._runner._calls = [
            (self._batch_norm, call[1]) if node.op_type == "BatchNormalization" else call for node, call in calls
        ]

    def _batch_norm(self, n: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        share = 1 - n("momentum", 0.9)
        return F.batch_norm(x, mean, variance, scale, bias, self.training, share, n("epsilon", 1e-5))

    def __getstate__(self) -> dict[str, Any]:
        """All but what is made of the rest."""
        return {name: value for name, value in vars(self).items() if name != "_runner"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()


def _batch(model: ModelProto, inputs: list[str]) -> int:
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input if value.name in inputs]
    return next((shape[0] for shape in shapes if shape), 1)


def batch_dependent(model: ModelProto, twice: ModelProto) -> dict[str, Any] | None:
    """The constants that depend on the batch, seen from the same graph for twice the batch.

    For each which of its integers do, or "rows" where it has equal rows, one for each; None where the graphs differ in more.
    """
    wide = {tensor.name: to_array(tensor) for tensor in twice.graph.initializer}
    names = {tensor.name for tensor in model.graph.initializer}
    if [node.op_type for node in model.graph.node] != [node.op_type for node in twice.graph.node] or not names <= set(wide):
        return None
    found = {tensor.name: _dependence(to_array(tensor), wide[tensor.name]) for tensor in model.graph.initializer}
    return None if "unknown" in found.values() else {name: how for name, how in found.items() if how is not None}


def _dependence(value: Array, other: Array) -> Any:
    if value.shape == other.shape:
        changed = value != other
        if not np.array_equal(np.where(changed, value * 2, value), other):
            return "unknown"
        return changed.tolist() if changed.any() else None
    rows = value.ndim > 0 and other.shape == (2 * len(value), *value.shape[1:]) and (other == other[:1]).all()
    return "rows" if rows and (value == other[:1]).all() else "unknown"
