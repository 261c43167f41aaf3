"""Where a pruned model comes from, written into its ONNX metadata: a function of the plan alone, so that bytes repeat.

Start reading at `entries`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from onnx import ModelProto

from .model_file import metadata, read_model
from .plan import Plan

PREFIX = "graphprune."
"""Keys in `metadata_props` that are ours start with this."""


def provenance(plan: Plan) -> dict[str, str]:
    """What is recorded: hashes of the (normalised) source and of the plan, graphprune's version and the options."""
    options = json.dumps(plan.options, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {"source_sha256": plan.model_sha256, "plan_sha256": plan.digest, "version": plan.graphprune, "options": options}


def entries(plan: Plan) -> dict[str, str]:
    """The provenance as metadata of a model; the first to ask waits for the source to be hashed."""
    return {PREFIX + key: value for key, value in provenance(plan).items()}


def forget(model: ModelProto) -> ModelProto:
    """Drop the provenance that a model has, in place; returns the same model."""
    kept = [entry for entry in model.metadata_props if not entry.key.startswith(PREFIX)]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model


def record(model: ModelProto, plan: Plan) -> ModelProto:
    """Write a plan's provenance into a model, in place of an older one; returns the same model."""
    forget(model).MergeFrom(metadata(entries(plan)))
    return model


@dataclass(frozen=True)
class Inspection:
    """What a model file says about itself."""

    file: str
    sha256: str
    file_bytes: int
    ir_version: int
    opsets: dict[str, int]
    producer: str
    nodes: int
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    provenance: dict[str, str] = field(default_factory=dict)
    """Empty for a model that graphprune did not write."""
    metadata: dict[str, str] = field(default_factory=dict)
    """What others wrote."""


def inspect(path: Path) -> Inspection:
    """Read what a model file says about itself.  Raises InvalidModelError."""
    model = read_model(path)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    ours = {key.removeprefix(PREFIX): value for key, value in entries.items() if key.startswith(PREFIX)}
    return Inspection(
        file=str(path),
        sha256=file_digest(path),
        file_bytes=path.stat().st_size,
        ir_version=model.ir_version,
        opsets={entry.domain: entry.version for entry in model.opset_import},
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        nodes=len(model.graph.node),
        inputs=_shapes(model.graph.input),
        outputs=_shapes(model.graph.output),
        provenance=ours,
        metadata={key: value for key, value in entries.items() if not key.startswith(PREFIX)},
    )


def _shapes(values: object) -> dict[str, list[int | str]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}  # type: ignore[attr-defined]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
