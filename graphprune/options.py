"""The options of a pruning run, with their defaults: the one place that has them.

Start reading at `Options`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from . import ranges
from .errors import UsageError

Normalization = Literal["pin", "kept"]
"""What becomes of channels that a normalisation averages over: pinned, or free with averages over what is kept."""

Experts = Literal["keep", "prune"]
"""What becomes of the experts of a mixture: all stay, or some may leave and are never chosen then."""

MOST = 2**63 - 1
"""Of any whole number."""

MOST_THREADS = 1024
"""For measuring; more would only stop the machine."""


Mode = Literal["coupled", "unconstrained"]
Masks = Literal["nested", "independent"]


@dataclass(frozen=True)
class Options:
    """What the user asks for; the defaults are those of the command line, which takes them from here."""

    targets: tuple[str, ...] = ()
    recipe: str = ""
    """Names the passes that are not named here; by default the choice is graphprune's (`graphprune.recipes`)."""
    importance: str = ""
    selection: str = ""
    repair: tuple[str, ...] | None = None
    calibration: Any = None
    """Samples to run the network on: a path to an .npz, arrays by input name, or an iterator of such; None for random ones."""
    align: int | str = "auto"
    keep: tuple[str, ...] = ()
    ratios: tuple[str, ...] = ()
    mode: Mode = "coupled"
    """Whether all readers of a value drop the same channels, or each its own."""
    masks: Masks = "independent"
    """In unconstrained mode: whether readers share one ranking of channels, or each has its own."""
    min_channels: Annotated[int, ranges.Ge(0), ranges.Le(MOST)] = 1
    """At least so many units stay in a group; with 0 residual branches may leave as a whole (`graphprune.depth`)."""
    seed: Annotated[int, ranges.Ge(0), ranges.Le(MOST)] = 0
    threads: Annotated[int, ranges.Ge(0), ranges.Le(MOST_THREADS)] = 1
    """Threads that latency is measured with; 0: the runtime decides."""
    normalization: Normalization = "pin"
    experts: Experts = "keep"
    on_unsupported: Literal["pin", "error"] = "pin"
    verify: bool = True

    @property
    def samples_made_up(self) -> bool:
        """Whether passes that run the network get samples that nobody gave."""
        return self.calibration is None or (isinstance(self.calibration, str) and self.calibration == "random")

    def as_dict(self) -> dict[str, Any]:
        """The options as they are recorded in a plan: all that decide about the result."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("verify", "calibration")}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def updated(self, changes: Mapping[str, Any]) -> Options:
        """These options with some changed; a single string stands for a list of one.  Raises UsageError for unknown names."""
        known = [field.name for field in fields(self)]
        values = dict(changes)
        for name, value in changes.items():
            if name not in known:
                raise UsageError(f"unknown option {name!r}; there are: {', '.join(known)}")
            if name in ("targets", "keep", "ratios", "repair") and value is not None:
                values[name] = (value,) if isinstance(value, str) else tuple(value)
        return replace(self, **values)
