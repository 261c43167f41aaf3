"""The ranges of annotated_types, which is imported when a range is looked at.

Only what reads configurations looks at them.  Importing annotated_types first takes 15 ms: it brings typing_extensions, which
makes generic types slower to build from then on, and numpy builds many.  Start reading at `__getattr__`.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`Ge`, `Gt`, `Le` and the others."""
    import annotated_types

    return getattr(annotated_types, name)
