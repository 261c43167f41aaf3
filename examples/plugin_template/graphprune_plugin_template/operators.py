"""Operators that graphprune has no rule for.  The notation is in docs/operators.md.  Start reading at `OPERATORS`."""

from __future__ import annotations

from graphprune.operators import typed

OPERATORS = [typed("MaxRoiPool", "[_,c,_,_] [_,_] -> [_,c,_,_]")]
"""Entries of the operator table: MaxRoiPool pools each channel by itself, in the same regions."""
