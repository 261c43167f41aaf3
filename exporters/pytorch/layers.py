"""The sizes that torch's own layers keep as attributes, from what is kept of their parameters.

Start reading at `layer_sizes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from graphprune.errors import UsageError

from .module_plan import Cut, HeadSizes

Sizes = dict[str, int | list[int]]
Cuts = Mapping[str, Cut]


class UnfitLayerError(UsageError):
    """A layer of torch has no way to express what the plan leaves of it."""


def layer_sizes(module: Any, cuts: Cuts) -> tuple[dict[str, Sizes], dict[str, HeadSizes]]:
    """By submodule: the attributes of torch's layers that change, and the heads of attention layers.

    Raises UnfitLayerError where a layer cannot have the shapes that its parameters get.
    """
    attributes, attention = {}, {}
    for path, layer in module.named_modules():
        own = dict(_own_cuts(path, layer, cuts))
        if not own:
            continue
        if _is(layer, "MultiheadAttention"):
            attention[path] = _heads(path, layer, cuts)
        changed = {name: value for name, value in _sizes(path, layer, own) if hasattr(layer, name)}
        changed = {name: value for name, value in changed.items() if _plain(getattr(layer, name)) != value}
        if changed:
            attributes[path] = changed
    return attributes, attention


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def _own_cuts(path: str, layer: Any, cuts: Cuts) -> Iterator[tuple[str, Cut]]:
    """The parameters of a layer that are cut, by name; what a parametrisation computes counts as the layer's."""
    prefix = f"{path}." if path else ""
    for name in ("weight", "bias", "running_mean", "in_proj_weight", *_names(layer)):
        for form in (
            name,
            f"parametrizations.{name}.original",
            f"parametrizations.{name}.original1",
            f"{name}_v",
            f"{name}_orig",
        ):
            if prefix + form in cuts:
                yield name, cuts[prefix + form]
                break


def _names(layer: Any) -> list[str]:
    return [name for name, _ in layer.named_parameters(recurse=False)]


def _is(layer: Any, *names: str) -> bool:
    """Whether a layer is of one of torch's own classes (or derived from one)."""
    return any(each.__name__ in names and each.__module__.startswith("torch.nn.") for each in type(layer).__mro__)


def _sizes(path: str, layer: Any, cuts: Mapping[str, Cut]) -> Iterator[tuple[str, int | list[int]]]:
    first = cuts.get("weight") or cuts.get("running_mean") or next(iter(cuts.values()))
    shape = list(first.new_shape)
    if _is(layer, "_ConvNd"):
        yield from _convolution(path, layer, first)
    elif _is(layer, "Linear"):
        yield from (("out_features", shape[0]), ("in_features", shape[-1]))
    elif _is(layer, "Bilinear"):
        yield from (("out_features", shape[0]), ("in1_features", shape[1]), ("in2_features", shape[2]))
    elif _is(layer, "_NormBase"):
        yield "num_features", shape[0]
    elif _is(layer, "LayerNorm", "RMSNorm"):
        yield "normalized_shape", shape
    elif _is(layer, "GroupNorm"):
        yield from (("num_channels", shape[0]), ("num_groups", _groups(path, layer.num_groups, first)))
    elif _is(layer, "Embedding", "EmbeddingBag"):
        yield from (("num_embeddings", shape[0]), ("embedding_dim", shape[1]))
    elif _is(layer, "PReLU"):
        yield "num_parameters", shape[0]
    elif _is(layer, "RNNBase", "RNNCellBase"):
        yield from _recurrent(path, layer, cuts)


def _groups(path: str, groups: int, cut: Cut, axis: int = 0) -> int:
    """How many of the groups along an axis are left.  Raises UnfitLayerError where they are no longer of one size."""
    size = cut.shape[axis] // groups
    left = np.unique(np.asarray(cut.kept.get(axis, range(cut.shape[axis]))) // size, return_counts=True)[1]
    if len(set(left.tolist())) > 1:
        raise UnfitLayerError(
            f"layer {path!r}: the plan leaves groups of different sizes ({sorted(set(left.tolist()))} channels)"
        )
    return len(left)


def _convolution(path: str, layer: Any, weight: Cut) -> Iterator[tuple[str, int]]:
    groups, (first, second) = _groups(path, layer.groups, weight), weight.new_shape[:2]
    names = ("in_channels", "out_channels") if layer.transposed else ("out_channels", "in_channels")
    yield from ((names[0], first), (names[1], second * groups), ("groups", groups))


def _recurrent(path: str, layer: Any, cuts: Mapping[str, Cut]) -> Iterator[tuple[str, int]]:
    shapes = {name: cuts[name].new_shape if name in cuts else tuple(each.shape) for name, each in layer.named_parameters()}
    hidden = {shape[0] // _gates(layer) for name, shape in shapes.items() if name.startswith(("weight_hh", "bias"))}
    if len(hidden) > 1:
        raise UnfitLayerError(
            f"layer {path!r}: all layers and directions of torch's {type(layer).__name__} have one hidden size, but the plan "
            f"leaves {', '.join(map(str, sorted(hidden)))}; keep it, or use one module for each layer"
        )
    first = next(shape for name, shape in shapes.items() if name.startswith("weight_ih"))
    yield from (("hidden_size", hidden.pop()), ("input_size", first[1]))
    projections = {shape[0] for name, shape in shapes.items() if name.startswith("weight_hr")}
    if projections:
        yield "proj_size", projections.pop()


def _gates(layer: Any) -> int:
    return 4 if _is(layer, "LSTM", "LSTMCell") else 3 if _is(layer, "GRU", "GRUCell") else 1


def _heads(path: str, layer: Any, cuts: Cuts) -> HeadSizes:
    """Raises UnfitLayerError where heads differ in size."""
    prefix = f"{path}." if path else ""
    if layer.bias_k is not None or layer.add_zero_attn:
        raise UnfitLayerError(
            f"layer {path!r}: nn.MultiheadAttention with add_bias_kv or add_zero_attn cannot lose heads in torch"
        )
    sizes = head_sizes(layer)
    widths = np.array([sizes.query, sizes.query, sizes.value]) * sizes.heads
    if layer.in_proj_weight is not None:
        rows = np.asarray(_kept_rows(cuts, f"{prefix}in_proj_weight", int(widths.sum())))
        starts = np.cumsum([0, *widths])
        parts = [rows[(rows >= start) & (rows < end)] - start for start, end in pairwise(starts)]
    else:
        parts = [
            np.asarray(_kept_rows(cuts, f"{prefix}{name}_proj_weight", width)) for name, width in zip("qkv", widths, strict=True)
        ]
    per_head = [sizes.query, sizes.query, sizes.value]
    counts = [np.unique(part // size, return_counts=True) for part, size in zip(parts, per_head, strict=True)]
    left = [sorted(set(count.tolist())) for _, count in counts]
    if any(len(each) != 1 for each in left) or any(len(heads) != len(counts[0][0]) for heads, _ in counts):
        raise UnfitLayerError(f"layer {path!r}: the plan leaves heads of different sizes")
    return HeadSizes(len(counts[0][0]), left[0][0], left[2][0])


def _kept_rows(cuts: Cuts, name: str, size: int) -> Any:
    return cuts[name].kept.get(0, range(size)) if name in cuts else range(size)


def head_sizes(layer: Any) -> HeadSizes:
    """The heads that an attention layer has now, pruned before or not."""
    size = layer.embed_dim // layer.num_heads
    return getattr(layer, "sizes", None) or HeadSizes(layer.num_heads, size, size)
