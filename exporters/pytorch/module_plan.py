"""What is kept of each parameter and buffer of a module, and the sizes that its submodules then have.

The part of a plan that a framework's own module needs: names and indices, no graph, no weights.  It is UTF-8 JSON
(docs/back-to-torch.md) and applies to any module of the same architecture, whatever its weights.  Start reading at `ModulePlan`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from graphprune.errors import UsageError
from graphprune.json_files import STRICT, parse, read_text
from graphprune.version import VERSION

Index = Annotated[int, Ge(0)]
Size = Annotated[int, Gt(0)]


@dataclass(frozen=True)
class Cut:
    """A parameter or buffer: its shape before, and by axis the indices that stay."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    shape: list[Index]
    keep: dict[str, list[Index]]

    @property
    def kept(self) -> dict[int, list[int]]:
        """The indices that stay, by axis."""
        return {int(axis): indices for axis, indices in self.keep.items()}

    @property
    def new_shape(self) -> tuple[int, ...]:
        """The shape after."""
        return tuple(len(self.kept.get(axis, range(size))) for axis, size in enumerate(self.shape))


@dataclass(frozen=True)
class HeadSizes:
    """The heads of an nn.MultiheadAttention that are left: how many, and the sizes of queries (and keys) and of values."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    heads: Size
    query: Size
    value: Size


@dataclass(frozen=True)
class ModulePlan:
    """A pruning decision in the names of a module."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    tensors: dict[str, Cut]
    attributes: dict[str, dict[str, int | list[int]]]
    """By submodule and attribute: the size that it has now."""
    attention: dict[str, HeadSizes] = field(default_factory=dict)
    graphprune: str = VERSION
    schema: Literal["graphprune.module_plan/1"] = "graphprune.module_plan/1"

    def to_json(self) -> str:
        """The plan as JSON text; equal plans give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"

    def with_attributes(self, more: Mapping[str, Mapping[str, int | list[int]]]) -> ModulePlan:
        """The same plan with more sizes of submodules."""
        merged = {path: {**self.attributes.get(path, {}), **more.get(path, {})} for path in {*self.attributes, *more}}
        return ModulePlan(self.tensors, merged, self.attention)


def parse_module_plan(text: str, source: str = "module plan") -> ModulePlan:
    """Read a module plan.  Raises UsageError where it is malformed, naming the place."""
    plan = parse(ModulePlan, text, source, "module plan")
    for name, cut in plan.tensors.items():
        for axis, kept in cut.keep.items():
            if not axis.isdecimal() or int(axis) >= len(cut.shape):
                raise UsageError(f"{source}: {name!r} has no axis {axis!r}")
            if max(kept, default=0) >= cut.shape[int(axis)] or len(set(kept)) < len(kept):
                raise UsageError(f"{source}: {name!r}, axis {axis}: indices must be below {cut.shape[int(axis)]}, each once")
    return plan


def read_module_plan(path: Path) -> ModulePlan:
    """Read a module plan file.  Raises UsageError where it cannot be read or is malformed."""
    return parse_module_plan(read_text(path, "module plan"), str(path))


def module_plan_path(plan: Path) -> Path:
    """The module plan's place beside a plan: its name with `.torch.json` for the last suffix."""
    return plan.with_suffix(".torch.json")


def tensors_of(module: Any) -> dict[str, Any]:
    """All parameters and buffers of a module, under each of their names."""
    return dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])
