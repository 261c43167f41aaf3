"""Networks for GPUs: TVM's own schedules (dlight), and the source of the kernels.

The schedules that this project has are for the vectors and registers of processors.  Nothing here needs a GPU: without one TVM
keeps the source in the library, and the machine that loads it compiles it.  Start reading at `scheduled`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm import s_tir
from tvm.s_tir import dlight

from .tvm_targets import PROCESSORS

Module = Any

RULES = ("Matmul", "GEMV", "Reduction", "GeneralReduction", "Transpose", "Fallback")
"""dlight's rules for GPUs in the order in which they are tried; the last one takes anything."""


def is_gpu(target: Any) -> bool:
    """Whether a target is programmed by blocks and threads of kernels."""
    return "gpu" in target.keys


def scheduled(module: Module, target: Any) -> Module:
    """Every loop function by the first of `RULES` that fits."""

    class Rule(dlight.ScheduleRule):  # type: ignore[misc]
        """A rule of dlight that lets others have what it cannot do: some give up by an assertion."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.rule = getattr(dlight.gpu, name)()

        def apply(self, func: Any, target: Any, tunable: bool) -> Any:
            try:
                return self.rule.apply(func, target, tunable)
            except (AssertionError, s_tir.ScheduleError):
                return None

    with target:
        return dlight.ApplyDefaultSchedule(*map(Rule, RULES))(module)


def source(executable: Any) -> str:
    """The source of all kernels, in the language of the device."""
    return "\n".join(each.inspect_source() for each in _modules(executable.mod) if each.kind not in _OF_THE_HOST)


_OF_THE_HOST = ("relax.VMExecutable", *PROCESSORS)


def _modules(module: Any) -> Iterator[Any]:
    yield module
    for each in module.imports:
        yield from _modules(each)
