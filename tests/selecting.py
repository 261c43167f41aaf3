"""Prune without alignment and proof, and count what is kept: for tests of targets and selections.  Start reading at `prune`."""

from __future__ import annotations

from nets import wide
from onnx import ModelProto

import graphprune

SELECTIONS = ["uniform", "global", "isomorphic"]


def prune(*targets: str, model: ModelProto | None = None, **options: object) -> graphprune.Result:
    """The net with many channels, or `model`, pruned to targets."""
    return graphprune.prune(model or wide(), targets=targets, **({"align": 1, "verify": False} | options))


def counts(result: graphprune.Result) -> dict[str, int]:
    """How many units each group keeps."""
    return {group.id: len(group.keep) for group in result.plan.groups}
