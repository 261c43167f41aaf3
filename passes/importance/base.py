"""What an importance pass is.  Start reading at `Importance.score`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal
from zlib import crc32

import numpy as np

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

Normalizer = Literal["mean", "max", "sum", "none"]


Sight = Literal["weights", "activations", "maps", "gradients", "outputs"]


@dataclass(frozen=True)
class Importance(ABC):
    """A criterion: how much each unit of a group matters."""

    name: ClassVar[str]
    extra: ClassVar[str] = ""
    """The extra that it needs (`graphprune.extras`); checked before any work."""
    sees: ClassVar[Sight] = "weights"
    """What it looks at beside the weights: moments (`Evidence.reads`), whole maps of some samples, gradients, or outputs."""

    @abstractmethod
    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """One score for each unit, higher is more important, comparable between groups; None where it has no say.

        A group without a score is kept whole.
        """


def generator(seed: int, group: Group) -> np.random.Generator:
    """Random numbers of a group's own, the same for the same seed."""
    return np.random.default_rng([seed, crc32(group.id.encode())])


Reduction = Literal["sum", "mean", "max"]


def reduced(parts: Sequence[Vector], how: Reduction) -> Vector:
    """The scores that several coupled tensors give, joined unit by unit."""
    stacked = np.stack(parts)
    if how == "max":
        return np.asarray(stacked.max(axis=0))
    return np.asarray(stacked.sum(axis=0) if how == "sum" else stacked.mean(axis=0))


def normalized(scores: Vector, how: Normalizer) -> Vector:
    """Scores divided by their mean, maximum or sum, so that groups compare."""
    if how == "none" or not len(scores):
        return scores
    scale = float(scores.max() if how == "max" else scores.sum() if how == "sum" else scores.mean())
    with np.errstate(invalid="ignore"):  # infinite by infinite: `problem` refuses what is no number
        return scores / scale if scale > 0 else scores
