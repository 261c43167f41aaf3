"""Cutting a module in place, and undoing it.

Parameters stay the same objects, so ties between them, hooks on them and lists that hold them survive; what changes is their
data, and gradients are dropped.  Start reading at `cut`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphprune.errors import UsageError

from .module_plan import Cut, ModulePlan, tensors_of

Tensor = Any
Undo = Callable[[], None]


def cut(module: Any, plan: ModulePlan) -> Undo:
    """Shrink a module in place; returns what brings it back as it was.

    Raises UsageError, with the module unchanged, where the plan is for another architecture.
    """
    tensors = tensors_of(module)
    _check(module, plan, tensors)
    undo: list[Undo] = []
    done: set[int] = set()
    for name, each in plan.tensors.items():
        tensor = tensors[name]
        if id(tensor) not in done:
            done.add(id(tensor))
            undo.append(replace_data(tensor, _taken(tensor.data, each)))
    try:
        for path, sizes in plan.attributes.items():
            layer = module.get_submodule(path)
            for name, size in sizes.items():
                undo.append(_set_attribute(layer, name, tuple(size) if isinstance(size, list) else size))
        for path, heads in plan.attention.items():
            undo.append(_convert(module.get_submodule(path), heads))
    except Exception:
        undo_all(undo)()
        raise
    for layer in module.modules():
        if hasattr(layer, "flatten_parameters"):
            layer.flatten_parameters()
    return undo_all(undo)


def undo_all(steps: list[Undo]) -> Undo:
    """What undoes several steps, the last one first."""

    def undo() -> None:
        for step in reversed(steps):
            step()

    return undo


def _check(module: Any, plan: ModulePlan, tensors: dict[str, Tensor]) -> None:
    owners: dict[int, str] = {}
    for name, each in plan.tensors.items():
        if name not in tensors:
            raise UsageError(f"the module has no parameter or buffer {name!r}: the plan is for another architecture")
        if list(tensors[name].shape) != each.shape:
            raise UsageError(f"{name!r} has shape {list(tensors[name].shape)}, but the plan is for {each.shape}")
        other = owners.setdefault(id(tensors[name]), name)
        if plan.tensors[other].kept != each.kept:
            raise UsageError(f"{other!r} and {name!r} are one parameter, but the plan keeps different parts of them")
    for path, sizes in plan.attributes.items():
        for name in sizes:
            if not _has_sizes(_submodule(module, path), name):
                raise UsageError(f"layer {path!r} has no size {name!r}: the plan is for another architecture")
    from torch import nn

    for path in plan.attention:
        if not isinstance(_submodule(module, path), nn.MultiheadAttention):
            raise UsageError(f"layer {path!r} is no nn.MultiheadAttention: the plan is for another architecture")


def _submodule(module: Any, path: str) -> Any:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise UsageError(f"the module has no layer {path!r}: the plan is for another architecture") from error


def _has_sizes(layer: Any, name: str) -> bool:
    value = vars(layer).get(name)
    return type(value) is int or (isinstance(value, tuple | list) and all(type(each) is int for each in value))


def _taken(data: Tensor, each: Cut) -> Tensor:
    import torch

    kept = data
    for axis, indices in each.kept.items():
        kept = kept.index_select(axis, torch.tensor(indices, dtype=torch.int64, device=data.device))
    for layout, rank in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if data.dim() == rank and data.is_contiguous(memory_format=layout) and not data.is_contiguous():
            return kept.contiguous(memory_format=layout)
    return kept.contiguous()


def torch_like(old: Tensor, new: Tensor) -> Tensor:
    """New numbers on the device, in the type and the memory format of a tensor of this shape."""
    import torch

    return torch.empty_like(old).copy_(new)


def replace_data(tensor: Tensor, data: Tensor) -> Undo:
    """Give a tensor other data, and no gradient; returns what brings both back."""
    old, grad = tensor.data, tensor.grad
    tensor.grad = None
    tensor.data = data

    def undo() -> None:
        tensor.data = old
        tensor.grad = grad

    return undo


def _set_attribute(layer: Any, name: str, value: Any) -> Undo:
    old = getattr(layer, name)
    setattr(layer, name, type(old)(value) if isinstance(old, list) else value)
    return lambda: setattr(layer, name, old)


def _convert(layer: Any, heads: Any) -> Undo:
    from .attention import PrunedMultiheadAttention

    kind, state = type(layer), dict(vars(layer))
    PrunedMultiheadAttention.convert(layer, heads)

    def undo() -> None:
        layer.__class__ = kind
        vars(layer).clear()
        vars(layer).update(state)

    return undo
