"""The folder of a run's result, as `batch` keeps them and as MLflow gets them.

    model.onnx, plan.json, plan.weights.safetensors (repaired weights), result.json, config.yaml

Start reading at `write_result`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from .configuration import rendered, values_of
from .errors import UsageError
from .json_text import json_text
from .run import Job, Outcome
from .terminal import write_text

MODEL, PLAN, RESULT, CONFIG, REPORT = "model.onnx", "plan.json", "result.json", "config.yaml", "report.html"
WEIGHTS = "plan.weights.safetensors"
"""What `graphprune.plan.write_weights` writes beside the plan."""


class Costs(BaseModel, extra="allow"):
    """Of a model; other figures beside these."""

    macs: float
    params: float
    __pydantic_extra__: dict[str, float] = Field(init=False)


class Reached(BaseModel):
    """A target, and what it came to."""

    target: str
    realised: float


class Facts(BaseModel):
    """What a batch and MLflow read of `result.json`; figures of accuracy and latency by `before` and `after`."""

    before: Costs
    after: Costs
    targets: list[Reached]
    model_sha256: str
    seconds: float = 0.0
    proof: dict[str, Any] | None
    accuracy: dict[str, float] = {}
    latency: dict[str, dict[str, float]] = {}
    requirements: list[dict[str, Any]] = []


def write_result(outcome: Outcome, job: Job, folder: Path, place: Path, facts: dict[str, Any]) -> None:
    """Write what a run found into a folder that will stand at `place`; `facts` are added to its JSON.

    Where a requirement is not met there is neither model nor plan.
    """
    files = () if outcome.unmet else outcome.write(folder / MODEL, folder / PLAN)
    result = outcome.as_json(outcome.sizes(files)) | facts
    write_text(folder / RESULT, json_text(result))
    values = values_of(job) | {"output": str(place / MODEL), "plan": str(place / PLAN)}
    write_text(folder / CONFIG, rendered(values, place / CONFIG))


def is_result(path: Path) -> bool:
    """Whether a file is in the folder of a result."""
    return all((path.parent / name).is_file() for name in (MODEL, RESULT, CONFIG))


def read_result(folder: Path) -> dict[str, Any] | None:
    """The JSON of a result; None where there is none, or somebody has broken it."""
    try:
        found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        Facts.model_validate(found)
    except (OSError, ValueError):
        return None
    return found


def result_folders(path: Path) -> list[Path]:
    """The results in a folder: itself, or those of a batch.  Raises UsageError where there are none."""
    if read_result(path) is not None:
        return [path]
    found = sorted(each for each in path.glob("results/*") if read_result(each) is not None)
    if not found:
        raise UsageError(f"{path}: no result of graphprune is there: a folder with {RESULT}, or that of a batch, is needed")
    return found
