"""What a module was traced with, and the tensors of another call in the same places.  Start reading at `Arguments.tensors`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from typing import Any

from graphprune.errors import UsageError

from .unfolded import Call

Tensor = Any
Form = list[Any]
"""The leaves of an argument, with `TENSOR` for each tensor."""

TENSOR = "a tensor"
PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Arguments:
    """The parameters of `forward`, and the forms of what it was traced with, in the order of the graph's inputs."""

    parameters: tuple[tuple[str, str, Any], ...]
    """Name, kind, and default, where there is one; None stands for one that is not plain."""
    traced: Mapping[str, Form]

    @classmethod
    def of(cls, module: Any, call: Call) -> Arguments:
        """Those of a call of a module."""
        parameters = signature(module.forward).parameters.values()
        known = cls(tuple((each.name, each.kind.name, _default(each)) for each in parameters), {})
        leaves = known._leaves(call.positional, call.named)
        return cls(known.parameters, {name: _form(own) for name, own in leaves.items()})

    def tensors(self, positional: tuple[Any, ...], named: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of a call, in the order of the traced ones.

        Raises UsageError for a call that differs from the traced one in more than its tensors: the rest is in the graph.
        """
        leaves = self._leaves(positional, named)
        defaults = {name: [default] for name, _, default in self.parameters}
        for name in dict.fromkeys([*self.traced, *leaves]):
            wanted = self.traced.get(name, defaults.get(name))
            given = _form(leaves[name]) if name in leaves else defaults.get(name)
            if given != wanted:
                raise UsageError(f"this module was traced with {name} = {_shown(wanted)}; it got {_shown(given)}")
        return [leaf for name in self.traced for leaf in leaves.get(name, ()) if _is_tensor(leaf)]

    def _leaves(self, positional: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, list[Any]]:
        from torch.utils import _pytree as tree

        kinds = {name: getattr(Parameter, kind) for name, kind, _ in self.parameters}
        own = Signature([Parameter(name, kinds[name], default=default) for name, _, default in self.parameters])
        try:
            bound = own.bind(*positional, **named).arguments
        except TypeError as error:
            raise UsageError(f"this module cannot be called like that: {error}") from error
        more = [value for name, value in bound.items() if kinds[name] is Parameter.VAR_KEYWORD]
        single = {name: value for name, value in bound.items() if kinds[name] is not Parameter.VAR_KEYWORD}
        return {name: tree.tree_leaves(value) for values in (single, *more) for name, value in values.items()}


def _default(parameter: Parameter) -> Any:
    plain = parameter.default is Parameter.empty or isinstance(parameter.default, PLAIN)
    return parameter.default if plain else None


def _is_tensor(value: Any) -> bool:
    from torch import Tensor as TorchTensor

    return isinstance(value, TorchTensor)


def _form(leaves: list[Any]) -> Form:
    return [TENSOR if _is_tensor(leaf) else leaf for leaf in leaves]


def _shown(form: Form | None) -> str:
    return (
        "nothing"
        if form in (None, [Parameter.empty])
        else ", ".join(each if each is TENSOR else repr(each) for each in form or ())
    )
