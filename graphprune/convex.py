"""Error curves that budgets can be spread over: convex, and without ties.  Start reading at `hull_slopes`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TIE = 1e-12
"""What separates equal scores, as a share of the largest."""


def hull_slopes(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """The slope of the lower convex hull of a curve over each of its steps; never decreasing."""
    corners = [0]
    for at in range(1, len(errors)):
        while len(corners) > 1 and _bends_down(errors, corners[-2], corners[-1], at):
            corners.pop()
        corners.append(at)
    widths = np.diff(corners)
    return np.repeat(np.diff(errors[corners]) / np.maximum(widths, 1), widths)


def _bends_down(errors: NDArray[np.float64], a: int, b: int, c: int) -> bool:
    return bool((errors[b] - errors[a]) * (c - a) >= (errors[c] - errors[a]) * (b - a))
