"""A module as a graph in which every parameter and float buffer stands by itself, as the module has it.

What torch's exporter and normalisation would fold (batch normalisation into convolutions, transposed weights, the gates of an
LSTM in another order) stays in the graph as nodes: while it is normalised the parameters are inputs.  So the analysis sees how
every index of every parameter is used.  Start reading at `unfolded`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, helper

from graphprune.errors import InvalidModelError, UsageError, first_line
from graphprune.graph import Graph
from graphprune.normalize import normalize
from graphprune.quiet import quiet

Module = Any
Tensor = Any


@dataclass(frozen=True)
class Call:
    """What `forward` is called with."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]

    @classmethod
    def of(cls, module: Module, inputs: Any) -> Call:
        """A tuple of positional arguments, a mapping of named ones, or one argument.  Raises UsageError for unknown names."""
        from inspect import Parameter, signature

        if not isinstance(inputs, Mapping):
            return cls(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {})
        parameters = signature(module.forward).parameters
        unknown = [name for name in inputs if name not in parameters]
        if unknown and not any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values()):
            raise UsageError(f"forward has no argument {unknown[0]!r}; it has: {', '.join(parameters)}")
        known = [name for name in parameters if name in inputs]
        return cls((), {name: inputs[name] for name in [*known, *unknown]})

    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in the order in which the exporter makes them inputs."""
        from torch import Tensor as TorchTensor
        from torch.utils import _pytree as tree

        return [leaf for leaf in tree.tree_leaves((self.positional, dict(self.named))) if isinstance(leaf, TorchTensor)]

    def doubled(self) -> Call:
        """The same call with every tensor twice, one behind the other."""
        from torch import cat

        return self.with_tensors([cat([each, each]) if each.dim() else each for each in self.tensors()])

    def with_tensors(self, tensors: list[Tensor]) -> Call:
        """The same call with other tensors."""
        from torch import Tensor as TorchTensor
        from torch.utils import _pytree as tree

        leaves, spec = tree.tree_flatten((self.positional, dict(self.named)))
        fresh = iter(tensors)
        positional, named = tree.tree_unflatten([next(fresh) if isinstance(leaf, TorchTensor) else leaf for leaf in leaves], spec)
        return Call(positional, named)


@contextmanager
def evaluating(module: Module) -> Iterator[None]:
    """Evaluation mode, without gradients; every submodule gets its own mode back."""
    import torch

    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for each, mode in modes:
            each.training = mode


def unfolded(module: Module, call: Call) -> Graph:
    """The normalised graph of a module; its initializers have the names of parameters and buffers, and their layout.

    Raises InvalidModelError where torch cannot export the module.
    """
    model = _exported(module, call)
    floats = {name for name, tensor in _state(module) if tensor.is_floating_point()}
    state = [tensor for tensor in model.graph.initializer if tensor.name in floats]
    others = [tensor for tensor in model.graph.initializer if tensor.name not in floats]
    model.graph.input.extend(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in state)
    del model.graph.initializer[:]
    model.graph.initializer.extend(others)
    graph = normalize(model)
    names = {tensor.name for tensor in state}
    inputs = [value for value in graph.model.graph.input if value.name not in names]
    del graph.model.graph.input[:]
    graph.model.graph.input.extend(inputs)
    graph.model.graph.initializer.extend(state)
    return Graph(graph.model, graph.shapes, graph.sized)


def _state(module: Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers, under each of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _exported(module: Module, call: Call) -> ModelProto:
    import torch

    try:
        with quiet("torch.onnx"), warnings.catch_warnings(), evaluating(module):
            warnings.simplefilter("ignore")  # about torch's own internals; what fails raises
            program = torch.export.export(module, call.positional, dict(call.named))
            found: ModelProto = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False).model_proto
    except Exception as error:
        raise InvalidModelError(f"torch cannot export the module: {first_line(error.__cause__ or error)}") from error
    return found
