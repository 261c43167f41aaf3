"""What TVM's own passes leave: operators on constants, and Clip as loop functions.  Start reading at `simplified`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst


@relax.expr_functor.mutator
class _Simpler(relax.PyExprMutator):  # type: ignore[misc]
    """What TVM's own passes leave: see `simplified`."""

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        name = getattr(call.op, "name", "")
        if name == "relax.call_tir":
            return self._bound(call)
        if name not in FOLDED:
            return call
        values = [self._constant(argument) for argument in call.args if isinstance(argument, GenericConst | relax.Var)]
        shape = call.ty.shape
        if any(value is None for value in values) or not values or not isinstance(shape, relax.ShapeExpr):
            return call
        if not all(isinstance(size, tvm.tirx.IntImm) for size in shape):
            return call
        return relax.const(np.array(FOLDED[name](call, [int(size) for size in shape], *values), order="C"))

    def _constant(self, argument: Any) -> Any:
        """The values of a constant; None for anything else."""
        if isinstance(argument, relax.Var):
            argument = self.lookup_binding(argument)
        return argument.value.numpy() if isinstance(argument, GenericConst) else None

    def _bound(self, call: Any) -> Any:
        """A limit of Clip, which the importer writes as a loop function, as an operator of full rank: layouts pass through it."""
        name = call.args[0].name_hint.rstrip("0123456789")
        arguments = list(call.args[1]) if isinstance(call.args[1], relax.Tuple) else []
        if name not in ("maximum", "minimum") or len(arguments) != 2:
            return call
        limit = self._constant(arguments[1])
        if limit is None or limit.ndim:
            return call
        return getattr(relax.op, name)(arguments[0], relax.const(limit.reshape([1] * len(call.ty.shape))))


FOLDED: dict[str, Any] = {
    "relax.permute_dims": lambda call, shape, value: value.transpose(None if call.attrs.axes is None else list(call.attrs.axes)),
    "relax.reshape": lambda call, shape, value: value.reshape(shape),
    "relax.expand_dims": lambda call, shape, value: value.reshape(shape),
    "relax.isnan": lambda call, shape, value: np.isnan(value),
    "relax.where": lambda call, shape, condition, left, right: np.where(condition, left, right),
}
"""Operators on constants that are computed here, since TVM compiles a function for each."""


@tvm.transform.module_pass(opt_level=0, name="Simplified")  # type: ignore[untyped-decorator]
def simplified(module: Any, context: Any) -> Any:
    """Fold operators on constants; write Clip in operators."""
    return relax.transform.CanonicalizeBindings()(mutated(module, _Simpler))


def mutated(module: Any, mutator: Callable[[Any], Any]) -> Any:
    """A module, changed in place, whose relax functions went through a mutator."""
    for name, function in module.functions_items():
        if isinstance(function, relax.Function):
            module.update_func(name, mutator(module).visit_expr(function))
    return module
