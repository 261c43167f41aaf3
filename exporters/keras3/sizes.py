"""The configuration that gives a layer the shapes which a plan leaves of it.

Keras makes layers from their configurations.  Of those numbers in one that are sizes before pruning, the ones are changed with
which the layer has the right weights and returns the right shapes: that is tried.  Start reading at `remade`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np

from graphprune.edit import Indices, KeptOf, kept_axes
from graphprune.errors import UsageError

from .unfolded import Layer, Use, Value

Config = dict[str, Any]
Place = tuple[Any, ...]
Kept = Mapping[int, Indices]
Shape = tuple[int | None, ...]

GROUPS = "groups"

OPTIONS = frozenset(
    {
        *("filters", "units", "output_dim", "input_dim"),
        *("num_heads", "key_dim", "value_dim", "head_dim", "num_query_heads", "num_key_value_heads"),
        *("output_shape", "target_shape", "newshape", "shape", GROUPS),
    }
)
"""The names of options that say sizes of axes, at any depth of a configuration; those of a user's layer come after them."""

MOST = 512
"""Configurations that are tried."""


class UnfitLayerError(UsageError):
    """A layer cannot have the shapes that the plan leaves of it."""


@dataclass(frozen=True)
class Wanted:
    """What a layer is like after pruning."""

    weights: Sequence[tuple[Shape, Kept]]
    """For each weight its shape before, and what is kept of its axes."""
    uses: Sequence[Use]
    kept_of: KeptOf

    def shapes(self) -> list[Shape]:
        """The shapes of the weights."""
        return [cut_shape(shape, kept) for shape, kept in self.weights]

    def value(self, leaf: Any) -> Any:
        """A tensor as the layer gets or returns it after pruning; anything else as it is."""
        import keras

        if not isinstance(leaf, Value):
            return leaf
        kept = kept_axes(self.kept_of, leaf.name, len(leaf.shape)) if leaf.name else {}
        return keras.KerasTensor(cut_shape(leaf.shape, kept), leaf.dtype)

    def cuts(self) -> Iterator[tuple[int, Indices]]:
        """(size before, kept indices) of every axis that shrinks, of weights and of what goes in and comes out."""
        import keras

        for shape, kept in [*self.weights, *map(self._kept, keras.tree.flatten([_parts(use) for use in self.uses]))]:
            yield from ((size, kept[axis]) for axis, size in enumerate(shape) if size is not None and axis in kept)

    def _kept(self, leaf: Any) -> tuple[Shape, Kept]:
        if not isinstance(leaf, Value) or not leaf.name:
            return (), {}
        return leaf.shape, kept_axes(self.kept_of, leaf.name, len(leaf.shape))


def _parts(use: Use) -> list[Any]:
    return [list(use.positional), use.named, use.results]


def cut_shape(shape: Shape, kept: Kept) -> Shape:
    """A shape after pruning."""
    return tuple(len(kept[axis]) if axis in kept else size for axis, size in enumerate(shape))


def fitted_config(layer: Layer, wanted: Wanted) -> Config:
    """The configuration of a layer or operation after pruning.  Raises UnfitLayerError where there is none."""
    try:
        config: Config = layer.get_config()
    except Exception as error:  # what a layer's code raises can be anything
        raise UnfitLayerError(f"{_described(layer)} has no configuration to make it anew from: {reason_of(error)}") from error
    cuts = list(wanted.cuts())
    if not cuts:
        return config
    problem = ""
    for names in (OPTIONS, None):
        places = list(_places(config, names))
        candidates = [_candidates(place, value, cuts) for place, value in places]
        for values in islice(product(*candidates), MOST):
            changed = _with(config, zip((place for place, _ in places), values, strict=True))
            found = _misfit(layer, changed, wanted)
            if found is None:
                return changed
            problem = problem or found
    raise UnfitLayerError(
        f"{_described(layer)}: no configuration gives it the sizes that the plan leaves: {problem}. Take the size from the "
        "input's shape or make it an option of the layer's get_config(), or keep its channels (--keep)"
    )


def _described(layer: Layer) -> str:
    return f"layer {str(getattr(layer, 'path', '') or layer.name)!r} ({type(layer).__name__})"


def reason_of(error: Exception) -> str:
    """What Keras says, without the colours and the line that all its errors begin with."""
    lines = [line.strip() for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()]
    telling = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    return telling[0].rstrip(".") if telling else type(error).__name__


def _places(config: Any, names: frozenset[str] | None, path: Place = (), inside: bool = False) -> Iterator[tuple[Place, int]]:
    """The integers of a configuration above 1 that are, or are in, an option of one of the names (None: of any)."""
    entries = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list | tuple) else ()
    for key, value in entries:
        named = inside or names is None or key in names
        if isinstance(value, int) and not isinstance(value, bool) and value > 1 and named:
            yield (*path, key), value
        yield from _places(value, names, (*path, key), named)


def _candidates(place: Place, value: int, cuts: list[tuple[int, Indices]]) -> list[int]:
    """What a number may become, the likeliest first."""
    if place[-1] == GROUPS:
        return list(dict.fromkeys([*_groups_left(value, cuts), value]))
    return list(dict.fromkeys([value, *(len(kept) for size, kept in cuts if size == value)]))


def _groups_left(groups: int, cuts: list[tuple[int, Indices]]) -> Iterator[int]:
    for size, kept in cuts:
        counts = np.unique(kept // (size // groups), return_counts=True)[1] if size % groups == 0 else np.zeros(0, int)
        if len(set(counts.tolist())) == 1:
            yield len(counts)


def _with(config: Config, changes: Any) -> Config:
    changed = copy.deepcopy(config)
    for place, value in changes:
        changed = _replaced(changed, place, value)
    return changed


def _replaced(config: Any, place: Place, value: int) -> Any:
    if not place:
        return value
    inner = _replaced(config[place[0]], place[1:], value)
    if isinstance(config, tuple):
        return (*config[: place[0]], inner, *config[place[0] + 1 :])
    config[place[0]] = inner
    return config


def _misfit(layer: Layer, config: Config, wanted: Wanted) -> str | None:
    """What is wrong with a layer of this configuration, on inputs as they are after pruning; None where it is right."""
    import keras

    try:
        trial = _made_from(layer, config)
        for use in wanted.uses:
            positional, named, expected = (keras.tree.map_structure(wanted.value, each) for each in vars(use).values())
            for own, right in zip(*map(keras.tree.flatten, (trial(*positional, **named), expected)), strict=True):
                if isinstance(right, keras.KerasTensor) and not _fits(own.shape, right.shape):
                    return f"it returns the shape {_text(own.shape)} where {_text(right.shape)} is left"
    except Exception as error:  # what a layer's code raises for sizes that it does not take can be anything
        return reason_of(error)
    own_shapes = [tuple(each.shape) for each in getattr(trial, "weights", ())]
    for each, own_shape, right_shape in zip(getattr(layer, "weights", ()), own_shapes, wanted.shapes(), strict=False):
        if own_shape != right_shape:
            return f"its {each.name} has the shape {_text(own_shape)} where {_text(right_shape)} is left"
    return None if len(own_shapes) == len(wanted.weights) else "it has other weights than before"


def _fits(own: Shape, right: Shape) -> bool:
    return len(own) == len(right) and all(None in pair or pair[0] == pair[1] for pair in zip(own, right, strict=True))


def _text(shape: Shape) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"


def remade(layer: Layer, wanted: Wanted) -> tuple[Layer, Config]:
    """A fresh layer or operation as it is after pruning, and its configuration.  Raises UnfitLayerError."""
    config = fitted_config(layer, wanted)
    try:
        return _made_from(layer, config), config
    except Exception as error:  # what a layer's code raises can be anything
        text = f"{_described(layer)} cannot be made from its configuration: {reason_of(error)}. Let get_config() have all that "
        raise UnfitLayerError(f"{text}__init__() takes") from error


def _made_from(layer: Layer, config: Config) -> Layer:
    import keras

    if type(layer) is keras.layers.Lambda:  # Keras reads no code from configurations, but here the function is at hand
        options = {name: config[name] for name in ("name", "trainable", "dtype") if name in config}
        shape = layer._output_shape
        return keras.layers.Lambda(layer.function, shape, mask=layer.mask, arguments=layer.arguments, **options)
    return type(layer).from_config(copy.deepcopy(config))
