"""Applying a plan to the user's own Keras model: a new model with smaller layers, and a proof.

The model is traced without folding anything, the plan is carried over by values that are equal in both graphs, every variable is
cut, each layer is made anew from its configuration with the sizes that are left, and the outcome is compared with the pruned
ONNX model.  The user's model stays as it is.  Start reading at `apply_to_keras`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.cutting import taken
from graphprune.edit import Indices, kept_axes
from graphprune.errors import GraphpruneError, UsageError
from graphprune.extras import require
from graphprune.graph import Array
from graphprune.pipeline import Result, Source, apply_plan, load
from graphprune.plan import Plan
from graphprune.proof import difference
from graphprune.replay import analysis_of, shrink_pass
from graphprune.runtime import random_inputs, run

from ..pytorch.comparison import largest_difference, plan_of
from ..pytorch.matching import equal_values, read_values, transferred
from .recurrent import cells
from .repaired import KerasRepair
from .sizes import Config, UnfitLayerError, Wanted, cut_shape, reason_of, remade
from .unfolded import Layer, Model, Unfolded, check_kind, unfolded, values_of

SCALED_BY = {"MultiHeadAttention": "key_dim", "GroupedQueryAttention": "head_dim"}
"""Layers of Keras that divide by the root of a size, which the original's was: queries make up for it."""


@dataclass(frozen=True)
class AppliedToKeras:
    """A shrunk model."""

    model: Model
    """A new one, of the same class, compiled where the user's is."""
    max_error: float
    """The largest difference from the pruned ONNX model, relative to the largest magnitude of the output."""
    kept: Mapping[str, Mapping[int, list[int]]]
    """For each variable that shrinks, by its path in the user's model and by axis, the indices that stay."""


def apply_to_keras(
    model: Model,
    plan: Result | Plan | str | Path,
    onnx_model: Source | None = None,
    example_inputs: Any = None,
    *,
    weights: Mapping[str, Array] | None = None,
) -> AppliedToKeras:
    """A new model as a plan has it, made of the layers of a Functional or Sequential one; that one stays as it is.

    `plan` is what `prune` returned, a plan or its file (with the repaired weights beside it); for the latter two `onnx_model` is
    the model that it was made from, by default the Keras model, imported again.  The model's weights must be those that the plan
    was made with.  `example_inputs` are what the model is called with, by default random ones as the ONNX model takes them.

    Raises UsageError where plan, model and ONNX model do not fit each other, UnfitLayerError (a UsageError) where a layer cannot
    have the sizes that are left, InvalidModelError where TensorFlow cannot trace the model, ProofError where the outcome differs
    from the pruned ONNX model.
    """
    require("keras", "keras")
    require("tensorflow", "keras")
    require("tf2onnx", "keras")
    check_kind(model)
    result = _result(model, plan, onnx_model, weights)
    _check_plan(result)
    return _Back(model, result, example_inputs).applied()


def _result(model: Model, plan: Result | Plan | str | Path, source: Source | None, weights: Mapping[str, Array] | None) -> Result:
    if isinstance(plan, Result):
        return plan
    plan, weights = plan_of(plan, weights)
    if source is not None:
        return apply_plan(source, plan, weights=weights)
    try:
        return apply_plan(load(model), plan, weights=weights)
    except UsageError as error:
        text = "The model was imported again, which need not give the same names; give onnx_model, the file that was pruned"
        raise UsageError(f"{error}. {text}") from error


def _check_plan(result: Result) -> None:
    if result.options.get("mode") == "unconstrained":
        raise UsageError(
            "in unconstrained mode each reader takes channels of its own, which layers of Keras do not do; "
            "prune with --mode coupled"
        )
    dropped = [group.id for group in result.analysis.groups if not result.keep.get(group.id, [0]) and not group.follows]
    if dropped:
        raise UsageError(
            f"the plan drops whole branches (nothing is left of {dropped[0]!r}), which the model would still call; "
            "prune with --min-channels 1"
        )


def _compile_like(made: Model, model: Model) -> None:
    """Compile a model as another one was: from a description, or, where Keras has none, with the same loss and metrics."""
    try:
        made.compile_from_config(model.get_compile_config())
    except Exception:  # what is not registered cannot be found
        optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
        made.compile(**{**model._compile_config.config, "optimizer": optimizer})


class _Back:
    """One model on its way back: what is known about it before it is made anew."""

    def __init__(self, model: Model, result: Result, example_inputs: Any) -> None:
        self.model, self.result = model, result
        self.names = _input_names(model, result)
        self.feeds = random_inputs(result.original) if example_inputs is None else self._feeds_of(example_inputs)
        self.outputs = self._matched_outputs()
        self.traced: Unfolded = unfolded(model, [self.feeds[name].shape for name in self.names])
        normalization, experts = result.options.get("normalization", "pin"), result.options.get("experts", "keep")
        self.analysis = analysis_of(self.traced.graph, normalization, "coupled", experts)
        stay = result.analysis.present(result.keep)
        own_feeds = {f"x{number}": self.feeds[name] for number, name in enumerate(self.names)}
        pairs = list(
            equal_values(
                read_values(result.original, self.feeds, "the ONNX model"),
                read_values(self.traced.graph, own_feeds, "the traced model"),
            )
        )
        try:
            present = transferred(result.analysis, stay, pairs, self.analysis)
        except UsageError as error:
            text = "The Keras model has sizes there that the ONNX model has not (of a reshape, perhaps); keep that group (--keep)"
            raise UsageError(f"{self._in_names_of_keras(str(error))}. {text}") from error
        self.kept_of = shrink_pass().kept_indices(self.analysis, present)
        self.cells = list(cells(model, self.traced.graph))
        self.kept = self._kept_of_variables()
        kept_of = shrink_pass().kept_indices(result.analysis, stay)
        changed = KerasRepair(result.original, result.weights, kept_of, model, self.traced, pairs).run()
        self.repaired = self._by_variable(changed)

    def applied(self) -> AppliedToKeras:
        """The new model, compared with the pruned ONNX model."""
        made = self._made()
        largest = self._compare(made)
        kept = {
            variable.path: {axis: ids.tolist() for axis, ids in self.kept[id(variable)].items()}
            for variable in self.model.weights
            if self.kept.get(id(variable))
        }
        return AppliedToKeras(made, largest, kept)

    def _in_names_of_keras(self, text: str) -> str:
        names = {name: variable.path for name, variable in self.traced.variables.items()}
        names |= {name: f"the result of {layer.name}" for name, layer in self.traced.producers.items()}
        return re.sub(r"'([tv]\d+)'", lambda found: repr(names.get(found[1], found[1])), text).replace("the module", "the model")

    # ---- what is kept --------------------------------------------------------------------------

    def _kept_of_variables(self) -> dict[int, dict[int, Indices]]:
        """By the `id` of a variable the axes that shrink."""
        found = {
            id(variable): kept_axes(self.kept_of, name, len(variable.shape)) for name, variable in self.traced.variables.items()
        }
        for cell in self.cells:
            found |= cell.kept(self.kept_of)
        return found

    def _by_variable(self, changed: Mapping[str, Array]) -> dict[int, Array]:
        """Repaired weights in full shapes, by the `id` of a variable."""
        own = self.traced.variables
        found = {id(own[name]): array for name, array in changed.items() if name in own}
        for cell in self.cells:
            found |= {id(variable): array for variable, array in cell.brought_back(changed)}
        return found

    # ---- the new model -------------------------------------------------------------------------

    def _made(self) -> Model:
        import keras

        clones: dict[int, tuple[Layer, Layer, float]] = {}
        models: dict[int, Model] = {}

        def clone(layer: Layer) -> Layer:
            if isinstance(layer, keras.Model):
                if id(layer) not in models:
                    models[id(layer)] = keras.models.clone_model(layer, self._inner_inputs(layer), clone)
                return models[id(layer)]
            if id(layer) not in clones:
                fresh, config = remade(layer, self._wanted(layer))
                clones[id(layer)] = (layer, fresh, _growth(layer, config))
            return clones[id(layer)][1]

        compiled, self.model.compiled = self.model.compiled, False  # losses may be functions, which Keras cannot make anew
        try:
            made = keras.models.clone_model(self.model, clone_function=clone)
        except GraphpruneError:
            raise
        except Exception as error:  # what a layer's code raises can be anything
            raise UnfitLayerError(f"Keras cannot make the model anew: {reason_of(error)}") from error
        finally:
            self.model.compiled = compiled
        self._give_weights(clones.values())
        if compiled:
            _compile_like(made, self.model)
        return made

    def _give_weights(self, clones: Iterable[tuple[Layer, Layer, float]]) -> None:
        owners: dict[int, tuple[Layer, Any]] = {}
        for layer, fresh, growth in clones:
            olds, news = getattr(layer, "weights", []), getattr(fresh, "weights", [])
            if len(olds) != len(news):
                raise UnfitLayerError(
                    f"layer {layer.path!r} has {len(olds)} weights; made from its configuration it has {len(news)}"
                )
            for old, new in zip(olds, news, strict=True):
                owner, known = owners.setdefault(id(old), (layer, new))
                if known is not new:
                    raise UnfitLayerError(
                        f"layers {owner.name!r} and {layer.name!r} share the weight {old.path!r}, and Keras would make two of "
                        "it; let one layer own it and call that layer in both places"
                    )
                new.assign(self._cut(old) * (growth if "/query/" in old.path else 1))
                new.trainable = old.trainable

    def _inner_inputs(self, model: Model) -> Any:
        """What a model that is a layer of another takes after pruning."""
        import keras

        taken = keras.tree.flatten(self.traced.uses[id(model)][0].positional)
        structure = model.inputs if isinstance(model, keras.Sequential) else model.input
        fresh = []
        for own, value in zip(model.inputs, taken, strict=True):
            kept = kept_axes(self.kept_of, value.name, len(value.shape)) if value.name else {}
            fresh.append(keras.Input(batch_shape=cut_shape(tuple(own.shape), kept), dtype=own.dtype, name=own.name))
        return keras.tree.pack_sequence_as(structure, fresh)

    def _wanted(self, layer: Layer) -> Wanted:
        weights = [(tuple(each.shape), self.kept.get(id(each), {})) for each in getattr(layer, "weights", ())]
        return Wanted(weights, self.traced.uses.get(id(layer), []), self.kept_of)

    def _cut(self, variable: Any) -> Array:
        return taken(self.repaired.get(id(variable), values_of(variable)), self.kept.get(id(variable), {}))

    # ---- the proof -----------------------------------------------------------------------------

    def _feeds_of(self, example_inputs: Any) -> dict[str, Array]:
        import keras

        own = [tensor.name for tensor in self.model.inputs]
        if isinstance(example_inputs, Mapping) and set(example_inputs) == set(own):
            example_inputs = [example_inputs[name] for name in own]  # Keras would take them in the order of their names
        arrays = [np.asarray(each) for each in keras.tree.flatten(example_inputs)]
        if len(arrays) != len(self.names):
            raise UsageError(
                f"the model takes {len(self.names)} inputs ({', '.join(self.names)}), example_inputs are {len(arrays)}"
            )
        given = zip(self.names, arrays, self.model.inputs, strict=True)
        return {name: array.astype(tensor.dtype) for name, array, tensor in given}

    def _call(self, model: Model, feeds: Mapping[str, Array]) -> list[Array]:
        import keras

        arrays = [feeds[name] for name in self.names]
        given = arrays[0] if isinstance(model, keras.Sequential) else keras.tree.pack_sequence_as(model.input, arrays)
        return [np.asarray(each) for each in keras.tree.flatten(model(given, training=False))]

    def _matched_outputs(self) -> list[tuple[str, int]]:
        """(the ONNX model's output, its place in what the Keras model returns).  Raises UsageError for other weights."""
        try:
            own = self._call(self.model, self.feeds)
        except Exception as error:  # what a layer's code raises can be anything
            raise UsageError(
                f"the model {self.model.name!r} cannot be called: {reason_of(error)}. Give example_inputs"
            ) from error
        expected, found = run(self.result.original.model, self.feeds), []
        for value in self.result.original.outputs:
            pairs = [difference(expected[value.name], each) for each in own]
            best = min(range(len(own)), key=lambda k: pairs[k][0])
            if pairs[best][0] > pairs[best][1]:
                raise UsageError(
                    f"the model {self.model.name!r} does not compute the ONNX model's output {value.name!r}: "
                    "give it the weights that the model was exported with"
                )
            found.append((value.name, best))
        return found

    def _compare(self, made: Model) -> float:
        """The largest difference from the pruned ONNX model.  Raises ProofError."""
        return largest_difference(self.result, self.feeds, partial(self._call, made), self.outputs, "Keras model")


def _input_names(model: Model, result: Result) -> list[str]:
    """For each tensor that the Keras model takes, the ONNX model's input."""
    names, own = [value.name for value in result.original.inputs], [each.name for each in model.inputs]
    if len(names) != len(own):
        raise UsageError(
            f"the ONNX model has {len(names)} inputs ({', '.join(names)}), the Keras model {len(own)} ({', '.join(own)})"
        )
    return own if set(own) == set(names) else names


def _growth(layer: Layer, config: Config) -> float:
    """By how much queries must be larger, since the layer divides by the root of a size that is now smaller."""
    option = SCALED_BY.get(type(layer).__name__, "")
    before = layer.get_config().get(option) if type(layer).__module__.startswith("keras.") else None
    return math.sqrt(config[option] / before) if before else 1.0
