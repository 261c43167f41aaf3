"""What a module was traced with, and the tensors of another call in the same places.  Start reading at `Arguments.tensors`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from typing import Any

from graphprune.errors import UsageError

from .unfolded import Call

Tensor = Any
Leaves = dict[str, Any]
"""The leaves of an argument, by their place in it ("" where it is one itself)."""

TENSOR = "a tensor"
PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Arguments:
    """The parameters of `forward`, and what it was traced with, in the order of the graph's inputs.

    Leaves are as in the call, with `TENSOR` for each tensor.
    """

    parameters: tuple[tuple[str, str, bool], ...]
    """Name, kind, and whether there is a default."""
    defaults: Mapping[str, Leaves]
    traced: Mapping[str, Leaves]

    @classmethod
    def of(cls, module: Any, call: Call) -> Arguments:
        """Those of a call of a module."""
        parameters = signature(module.forward).parameters.values()
        known = tuple((each.name, each.kind.name, each.default is not Parameter.empty) for each in parameters)
        defaults = {each.name: _leaves(each.default) for each in parameters if each.default is not Parameter.empty}
        plain = {name: leaves for name, leaves in defaults.items() if all(isinstance(each, PLAIN) for each in leaves.values())}
        leaves = cls(known, {}, {})._bound(call.positional, call.named)
        return cls(known, plain, {name: _form(own) for name, own in leaves.items()})

    def tensors(self, positional: tuple[Any, ...], named: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of a call, in the order of the traced ones.

        Raises UsageError for a call that differs from the traced one in more than its tensors: the rest is in the graph.
        """
        leaves = self._bound(positional, named)
        for name in dict.fromkeys([*self.traced, *leaves]):
            wanted = self.traced.get(name, self.defaults.get(name))
            given = _form(leaves[name]) if name in leaves else self.defaults.get(name)
            if given != wanted:
                raise UsageError(f"this module was traced with {name} = {_shown(wanted)}; it got {_shown(given)}")
        return [leaves[name][place] for name, form in self.traced.items() for place, leaf in form.items() if leaf == TENSOR]

    def _bound(self, positional: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Leaves]:
        kinds = {name: getattr(Parameter, kind) for name, kind, _ in self.parameters}
        empty = Parameter.empty
        own = Signature([Parameter(name, kinds[name], default=None if has else empty) for name, _, has in self.parameters])
        try:
            bound = own.bind(*positional, **named).arguments
        except TypeError as error:
            raise UsageError(f"this module cannot be called like that: {error}") from error
        more = [value for name, value in bound.items() if kinds[name] is Parameter.VAR_KEYWORD]
        single = {name: value for name, value in bound.items() if kinds[name] is not Parameter.VAR_KEYWORD}
        return {name: _leaves(value) for values in (single, *more) for name, value in values.items()}


def _leaves(value: Any) -> Leaves:
    from torch.utils import _pytree as tree

    return {tree.keystr(path): leaf for path, leaf in tree.tree_flatten_with_path(value)[0]}


def _form(leaves: Leaves) -> Leaves:
    from torch import Tensor as TorchTensor

    return {place: TENSOR if isinstance(leaf, TorchTensor) else leaf for place, leaf in leaves.items()}


def _shown(form: Leaves | None) -> str:
    parts = [TENSOR if leaf == TENSOR else repr(leaf) for leaf in (form or {}).values()]
    return ", ".join(parts) or "nothing"
