"""Weights of a model that its caller has in memory: read where they are, as those of a file are.

A ModelProto gives out its data as new `bytes` whenever it is asked.  Memory that is used again takes a quarter of the time of a
copy to stay, so none is made: a tensor names the caller's as it would name a file (`graphprune.external`).  That lasts as long as
a Graph with a tensor that names it.  Start reading at `Lent`; who lends is `graphprune.in_memory.borrowed`.
"""

from __future__ import annotations

from uuid import uuid4
from weakref import WeakValueDictionary

from onnx import ModelProto, TensorProto

from .errors import InvalidModelError

PREFIX = "graphprune-lent:"
"""Begins the location of data that is in memory; locations of files are absolute paths."""


class Lent:
    """A tensor of the caller's with `size` bytes, and the location that stands for it while this object is there."""

    def __init__(self, tensor: TensorProto, size: int) -> None:
        self.tensor, self.size = tensor, size
        self.location = f"{PREFIX}{uuid4().hex}"  # no other process has it: graphs may be pickled
        _LENT[self.location] = self

    def data(self) -> bytes:
        """A copy of the data.  Raises InvalidModelError where there is more or less than the shape asks for."""
        data: bytes = self.tensor.raw_data
        if len(data) != self.size:
            raise InvalidModelError(
                f"tensor {self.tensor.name!r} has {len(data)} bytes of data, its shape asks for {self.size}: it is damaged, or "
                "was changed while it was in use"
            )
        return data


_LENT: WeakValueDictionary[str, Lent] = WeakValueDictionary()


def is_lent(location: str) -> bool:
    """Whether a location stands for data in memory, which need not be there any more."""
    return location.startswith(PREFIX)


def is_kept(location: str) -> bool:
    """Whether a location stands for data that is in memory now."""
    return location in _LENT


def lent_data(location: str) -> bytes:
    """A copy of the data that a location stands for.  Raises InvalidModelError where nobody keeps it."""
    return _kept(location).data()


def _kept(location: str) -> Lent:
    lent = _LENT.get(location)
    if lent is None:
        raise InvalidModelError(
            "the weights of this model are in one that was given in memory; keep the Result, Analysis or Graph that it belongs "
            "to while it is read"
        )
    return lent


def lent_to(model: ModelProto) -> list[Lent]:
    """What the initializers of a model name, for whoever wants to read them later.

    Raises InvalidModelError where nobody keeps it.
    """
    if not _LENT:
        return []
    named = (entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location")
    return [_kept(location) for location in named if is_lent(location)]
