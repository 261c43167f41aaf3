"""JSON as everybody reads it, without Infinity and NaN, which no standard has.  Start reading at `json_text`."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(value: Any) -> str:
    """Sorted, indented, with a line's end; numbers that are not finite are null."""
    return json.dumps(finite(value), sort_keys=True, indent=2, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The same value with None for each number that is not finite, at any depth."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
