"""The plan: what is kept of which group, tensor and axis.  The one durable artefact of a pruning run.

A plan is UTF-8 JSON with sorted keys, versioned by its `schema` (docs/plan.md).  It names the normalised model by content hash,
and its indices are relative to that model.  Start reading at `Plan`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from .errors import UsageError

SCHEMA = "graphprune.plan/1"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlanMember(_Strict):
    """One axis of an initializer that belongs to a group."""

    tensor: str
    axis: NonNegativeInt
    role: Literal["producer", "consumer", "carrier"]


class PlanGroup(_Strict):
    """A group and which of its `size` units stay, in order."""

    id: str
    size: NonNegativeInt
    keep: list[NonNegativeInt]
    members: list[PlanMember]


class PlanRead(_Strict):
    """What a node reads of an input when that is not all of it (unconstrained mode)."""

    node: str
    input: NonNegativeInt
    axis: NonNegativeInt
    keep: list[NonNegativeInt]


class PlanPinned(_Strict):
    """An axis that could not be pruned, and why."""

    tensor: str
    axis: NonNegativeInt
    reason: str
    node: str = ""


class Plan(_Strict):
    """A pruning decision that can be replayed on the same model."""

    schema_: Literal["graphprune.plan/1"] = Field(default=SCHEMA, alias="schema")
    graphprune: str
    model_sha256: str
    options: dict[str, Any]
    groups: list[PlanGroup]
    tensors: dict[str, dict[str, list[NonNegativeInt]]]
    reads: list[PlanRead] = []
    pinned: list[PlanPinned]

    def to_json(self) -> str:
        """The plan as JSON text; equal plans give equal text."""
        return json.dumps(self.model_dump(by_alias=True), sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"

    @property
    def keep(self) -> dict[str, list[int]]:
        """Kept units by group."""
        return {group.id: group.keep for group in self.groups}


def parse_plan(text: str, source: str = "plan") -> Plan:
    """Read a plan.  Raises UsageError where it is not JSON, not of this schema, or malformed, naming the place."""
    try:
        return Plan.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise UsageError(f"{source}: not a valid plan: {where}: {first['msg']}") from error


def read_plan(path: Path) -> Plan:
    """Read a plan file.  Raises UsageError where it cannot be read or is malformed."""
    try:
        return parse_plan(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot read the plan: {error}") from error
