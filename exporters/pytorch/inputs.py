"""Running a module and its graph on the same inputs.  Start reading at `located_results`."""

from __future__ import annotations

from typing import Any

from graphprune.errors import GraphpruneError, UsageError
from graphprune.graph import Array, Graph
from graphprune.runtime import random_inputs

from .baked import BakedSizeError, failed_line, located
from .unfolded import Call, evaluating

Module = Any


def made_up_call(module: Module, graph: Graph) -> Call:
    """Random arguments as the ONNX model takes them: by name where `forward` has those names."""
    from inspect import signature

    import torch

    device = next((each.device for each in module.parameters()), torch.device("cpu"))
    arrays = {name: torch.from_numpy(array).to(device) for name, array in random_inputs(graph).items()}
    named = all(name in signature(module.forward).parameters for name in arrays)
    return Call.of(module, arrays if named else tuple(arrays.values()))


def input_names(graph: Graph, traced: Graph) -> list[str]:
    """For each tensor that the module is called with, the name of the graph's input; "" where it has none."""
    names, own = [value.name for value in graph.inputs], [value.name for value in traced.inputs]
    if set(names) <= set(own):
        return [name if name in names else "" for name in own]
    if len(names) != len(own):
        raise UsageError(f"the ONNX model has {len(names)} inputs ({', '.join(names)}), the module {len(own)} ({', '.join(own)})")
    return names


def feeds_of(graph: Graph, traced: Graph, call: Call) -> dict[str, Array]:
    """The tensors of a call by the names of the graph's inputs."""
    names = input_names(graph, traced)
    return {name: each.detach().cpu().numpy() for name, each in zip(names, call.tensors(), strict=True) if name}


def results_of(module: Module, call: Call) -> list[Array]:
    """The tensors that a module returns, in evaluation mode."""
    import torch
    from torch.utils import _pytree as tree

    with evaluating(module):
        leaves = tree.tree_leaves(module(*call.positional, **call.named))
    return [leaf.detach().cpu().numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def located_results(module: Module, call: Call) -> list[Array]:
    """As `_results`; raises BakedSizeError that names submodule and line where the code fails."""
    active: list[str] = []
    try:
        with located(module) as active:
            return results_of(module, call)
    except GraphpruneError:
        raise
    except Exception as error:  # what a module's code raises can be anything
        path = repr(active[-1]) if active and active[-1] else "the module itself"
        text = str(error).strip().splitlines()
        raise BakedSizeError(
            f"the code of {path} has sizes in it that the plan changes ({failed_line(error)}): {text[0] if text else error!r}"
        ) from error
