"""Operators that graphprune has no rule for.  The notation is in docs/operators.md.  Start reading at `OPERATORS`."""

from __future__ import annotations

from graphprune.operators import typed

OPERATORS = [typed("GridSample", "[b,c,_...] [b,_...] -> [b,c,_...]")]
"""Entries of the operator table: GridSample samples each channel by itself, at the same positions."""
