"""Removed channels as mixtures of kept ones.  Start reading at `Interpolate.transfer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune import ranges
from graphprune.labels import Ids
from graphprune.second_order import damped

from .closed_form import ClosedForm, Wide


@dataclass(frozen=True)
class Interpolate(ClosedForm):
    """Replaces each removed channel by the best mixture of kept channels (linear interpolation as in LIAR, 2024).

    Unlike `obs` one mixture serves all kernel positions: fewer numbers to estimate, for little calibration data.
    """

    name: ClassVar[str] = "interpolate"
    damping: Annotated[float, ranges.Ge(0)] = 1e-3

    def transfer(self, covariance: Wide, kept: NDArray[np.bool_], channel: Ids) -> Wide:
        """The mixture of channels, repeated for each kernel position."""
        channels = len(np.unique(channel))
        positions = len(channel) // channels
        shared = np.einsum("ikjk->ij", covariance.reshape(channels, positions, channels, positions))
        there = kept.reshape(channels, positions)[:, 0]
        own = damped(shared[np.ix_(there, there)], self.damping)
        return np.asarray(np.kron(np.linalg.solve(own, shared[np.ix_(there, ~there)]), np.eye(positions)), np.float64)
