"""The plan: what is kept of which group, tensor and axis.  The one durable artefact of a pruning run.

A plan is UTF-8 JSON with sorted keys, versioned by its `schema` (docs/plan.md).  It names the normalised model by content hash,
and its indices are relative to that model.  Start reading at `Plan`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np

from . import ranges
from .archives import check_regular
from .atomic import atomic_file
from .errors import UsageError
from .graph import Array
from .json_files import STRICT, parse, read_text

SCHEMA: Literal["graphprune.plan/1"] = "graphprune.plan/1"

Index: TypeAlias = "Annotated[int, ranges.Ge(0)]"


@dataclass(frozen=True)
class PlanMember:
    """One axis of an initializer that belongs to a group."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    tensor: str
    axis: Index
    role: Literal["producer", "consumer", "carrier"]


@dataclass(frozen=True)
class PlanGroup:
    """A group and which of its `size` units stay, in order."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    id: str
    size: Index
    keep: list[Index]
    members: list[PlanMember]


@dataclass(frozen=True)
class PlanRead:
    """What a node reads of an input when that is not all of it (unconstrained mode)."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    node: str
    input: Index
    axis: Index
    keep: list[Index]


@dataclass(frozen=True)
class PlanPinned:
    """An axis that could not be pruned, and why."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    tensor: str
    axis: Index
    reason: str
    node: str = ""


@dataclass(frozen=True)
class Plan:
    """A pruning decision that can be replayed on the same model."""

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    graphprune: str
    model_sha256: str
    options: dict[str, Any]
    groups: list[PlanGroup]
    tensors: dict[str, dict[str, list[Index]]]
    pinned: list[PlanPinned]
    reads: list[PlanRead] = field(default_factory=list)
    weights_sha256: str = ""
    """Of the repaired weights in the companion file; empty where there are none."""
    schema: Literal["graphprune.plan/1"] = SCHEMA

    def to_json(self) -> str:
        """The plan as JSON text; equal plans give equal text."""
        return self._text

    @cached_property
    def _text(self) -> str:
        values = _fields(self)
        if not self.weights_sha256:
            del values["weights_sha256"]
        return json.dumps(values, default=_fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the JSON text."""
        return hashlib.sha256(self._text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def keep(self) -> dict[str, list[int]]:
        """Kept units by group."""
        return {group.id: group.keep for group in self.groups}


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, without copying what they hold: a plan has millions of indices."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def parse_plan(text: str, source: str = "plan") -> Plan:
    """Read a plan.  Raises UsageError where it is not JSON, not of this schema, or malformed, naming the place."""
    return parse(Plan, text, source, "plan")


def read_plan(path: Path) -> Plan:
    """Read a plan file.  Raises UsageError where it cannot be read or is malformed."""
    return parse_plan(read_text(path, "plan"), str(path))


# ---- repaired weights ---------------------------------------------------------------------------


def weights_path(plan: Path) -> Path:
    """The companion file of a plan: its name, without `.json`, and `.weights.safetensors`."""
    return plan.with_name(plan.name.removesuffix(".json") + ".weights.safetensors")


def weights_digest(weights: Mapping[str, Array]) -> str:
    """A hash over names, types, shapes and values; empty where there are no weights."""
    if not weights:
        return ""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_weights(plan: Path, weights: Mapping[str, Array]) -> None:
    """Write the companion file of a plan, or remove an old one where there are no weights."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = weights_path(plan)
    if not weights:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path) as temporary:
        try:
            save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, temporary)
        except SafetensorError as error:
            raise UsageError(f"{path}: cannot write there: {error}") from error


def read_weights(plan: Path) -> dict[str, Array]:
    """The repaired weights that belong to a plan; none without a companion file.  Raises UsageError where it is malformed."""
    path = weights_path(plan)
    if not path.exists():
        return {}
    check_regular(path, UsageError)
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UsageError(f"{path}: cannot read the repaired weights: {error}") from error
