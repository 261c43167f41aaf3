"""The optimal-brain-surgeon update.  Start reading at `Obs.transfer`."""

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
class Obs(ClosedForm):
    """Moves the weights of removed columns onto the kept ones, with the inverse Hessian (Hassibi and Stork 1993; OBSPA 2024)."""

    name: ClassVar[str] = "obs"
    damping: Annotated[float, ranges.Ge(0)] = 1e-3

    def transfer(self, covariance: Wide, kept: NDArray[np.bool_], channel: Ids) -> Wide:
        """inv(H_kk) @ H_kr: the best linear prediction of each removed column."""
        own = damped(covariance[np.ix_(kept, kept)], self.damping)
        return np.asarray(np.linalg.solve(own, covariance[np.ix_(kept, ~kept)]), np.float64)
