"""A module made of a graph: the way out where a module's own code cannot follow a plan.

Its parameters and buffers are those of the user's module, under the same names, so state dicts go both ways.  The nodes run one by
one (`graphprune.differentiable`).  Start reading at `GraphModule.forward`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from onnx import ModelProto
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as tree

from graphprune.differentiable import Differentiable
from graphprune.errors import CalibrationError, UsageError
from graphprune.graph import Graph, copy_model, to_array
from graphprune.torch_functions import Node

Tensor = Any


class GraphModule(nn.Module):  # type: ignore[misc]
    """Runs the nodes of an ONNX graph on parameters that can be trained.

    Called as the module that it was made from, it returns the same structure.  In training mode batch normalisation uses the
    batch's statistics and updates its own; there is no dropout.
    """

    def __init__(self, model: ModelProto, state: Mapping[str, Tensor], inputs: list[str], results: Any) -> None:
        """`state`: parameters and buffers by name; `inputs`: the graph's inputs in the order of the tensors that `forward` gets.

        `results` is the structure of what `forward` returns, as (leaves, spec) of torch's pytree with None for each tensor.
        Raises UsageError where the graph has operators without a torch function.
        """
        super().__init__()
        for name, tensor in state.items():
            self._add(name, tensor)
        self._inputs, self._results = inputs, results
        self._constants: list[str] = []
        for tensor in model.graph.initializer:
            if tensor.name not in state:
                self.register_buffer(f"_constant{len(self._constants)}", torch.tensor(to_array(tensor)), persistent=False)
                self._constants.append(tensor.name)
        self._read = [name for name in state if name in Graph(model).initializers]
        self._structure = copy_model(model, without=["initializer", "value_info"]).SerializeToString()
        self._prepare()

    def forward(self, *positional: Any, **named: Any) -> Any:
        """The module's results.  Raises UsageError for another number of tensors than the module was traced with."""
        given = [leaf for leaf in tree.tree_leaves((positional, named)) if isinstance(leaf, torch.Tensor)]
        if len(given) != len(self._inputs):
            raise UsageError(f"this module was traced with {len(self._inputs)} tensors; it got {len(given)}")
        constants = {name: getattr(self, f"_constant{k}") for k, name in enumerate(self._constants)}
        found = self._runner(dict(zip(self._inputs, given, strict=True)) | constants | {name: self._tensor(name) for name in self._read})
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
