"""Means of removed channels go into biases.  Start reading at `Absorb.transfer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune.labels import Ids

from .closed_form import ClosedForm, Wide


@dataclass(frozen=True)
class Absorb(ClosedForm):
    """Adds the mean of what was removed to the bias of what read it (bias absorption; FLAP, An et al. 2024; VBP 2025)."""

    name: ClassVar[str] = "absorb"

    def transfer(self, covariance: Wide, kept: NDArray[np.bool_], channel: Ids) -> Wide:
        """Nothing goes to other columns."""
        return np.zeros((int(kept.sum()), int((~kept).sum())))
