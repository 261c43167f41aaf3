"""LSTM, GRU and RNN: the hidden size runs through all gates, both directions and the initial states.

The two directions of a bidirectional layer share one tensor axis, so they share which units stay.  Start reading at
`recurrent`.
"""

from __future__ import annotations

from collections.abc import Callable

from .edit import Edit
from .site import Results, Site

PARAMETERS = ("", "weight", "weight", "bias", "", "", "", "weight")

_STATE = {0: "D,b,h", 1: "b,D,h"}
_OPERANDS = "{x} [D,(G h),i] [D,(G h),r] [D,(T h)]? [_]? [{state}]? [{state}]? [D,(P h)]?"


def rule(layout: int = 0) -> str:
    """The typing rule; `r` is what the recurrence reads of h."""
    operands = _OPERANDS.format(x="[b,S,i]" if layout else "[S,b,i]", state=_STATE[layout])
    return f"{operands} -> {'[b,S,D,h]' if layout else '[S,D,b,h]'} [{_STATE[layout]}] [{_STATE[layout]}]"


def recurrent(gates: int, biases: int) -> Callable[[Site], Results]:
    """The hidden size is a dimension of every gate (ONNX LSTM, GRU and RNN, opset 7 to 22); time and directions are pinned."""

    def infer(site: Site) -> Results:
        layout = int(site.attribute("layout", 0))
        recurrence = site.axes(2)
        if recurrence is None or len(recurrence) != 3:
            return site.refuse_unknown()
        hidden = site.size(recurrence[2], (site.shape(2) or (None,) * 3)[2])
        if hidden is None:
            return site.refuse(f"the hidden size of {site.operator} is not known")
        sizes = {"G": gates, "T": biases, "P": 3, "h": hidden}
        results = site.match(rule(layout), sizes)
        if results[0] is not None:
            site.unify(recurrence[2], results[0][-1])
        _note_macs(site, gates)
        return results

    return infer


def _note_macs(site: Site, gates: int) -> None:
    """Gates x hidden x (input + hidden) for every step, sample and direction."""
    data, weight, recurrence = site.axes(0), site.axes(1), site.axes(2)
    if data is None or weight is None or recurrence is None:
        return
    outer = [(data[0], site.typical(0, 0)), (data[1], site.typical(0, 1)), (recurrence[2], site.typical(2, 2))]
    constant = gates * site.typical(1, 0)
    site.note_macs(constant, [*outer, (weight[2], site.typical(1, 2))])
    site.note_macs(constant, [*outer, outer[2]])


def shrink_recurrent(edit: Edit) -> None:
    """Writes the hidden size that is left."""
    hidden = edit.kept_count(2, 2)
    if hidden is not None:
        edit.set_attribute("hidden_size", hidden)
