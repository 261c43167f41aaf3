"""A Keras model as a graph in which every variable stands by itself, as the model has it, and every layer's results have a name.

The model is traced with its variables as inputs, so that the converter folds nothing, and with what each layer returns as an
output, so that the analysis tells what is left of it.  Weights of recurrent layers stay constants: with others the converter
makes loops of them.  Start reading at `unfolded`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, numpy_helper

from graphprune.errors import InvalidModelError, UsageError, first_line
from graphprune.graph import Array, Graph
from graphprune.normalize import fix_input_shapes, normalize
from graphprune.quiet import quiet

Model = Any
Layer = Any
Variable = Any


@dataclass(frozen=True)
class Value:
    """A tensor between layers: its name in the graph, empty where it is no float, and its shape before pruning."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Use:
    """One call of a layer or operation; tensors in the structures are `Value`s."""

    positional: Any
    named: Any
    results: Any


@dataclass(frozen=True)
class Unfolded:
    """The graph of a model, and how the model's own parts are called in it."""

    graph: Graph
    variables: dict[str, Variable]
    """The variables that are initializers, by their names there."""
    uses: dict[int, list[Use]]
    """The calls of each layer or operation, by its `id`."""
    producers: dict[str, Layer]
    """The layer or operation that returns each value."""


def values_of(variable: Variable) -> Array:
    """The values of a variable, copied."""
    import keras

    return np.array(keras.ops.convert_to_numpy(variable))


def values_in(structure: Any) -> Iterator[Value]:
    """The values in a structure."""
    import keras

    yield from (leaf for leaf in keras.tree.flatten(structure) if isinstance(leaf, Value))


def layers_of(model: Model) -> Iterator[Layer]:
    """All layers of a model, those inside of others too, a layer before those inside it."""
    for layer in getattr(model, "_layers", []):
        yield layer
        yield from layers_of(layer)


def check_kind(model: Model) -> None:
    """Raises UsageError where a model, or one inside it, is not a graph of layers."""
    import keras

    if not isinstance(model, keras.Model):
        raise UsageError(f"expected a keras.Model, got {type(model).__qualname__}")
    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            f"apply_to_keras traces the model with TensorFlow, but Keras runs on {keras.backend.backend()}: save the model, set "
            "KERAS_BACKEND=tensorflow, and load it; a .keras file does not depend on the backend"
        )
    for each in [model, *layers_of(model)]:
        if isinstance(each, keras.Model) and not _is_graph(each):
            raise UsageError(
                f"the model {each.name!r} ({type(each).__qualname__}) has code of its own instead of a graph of layers, so it "
                "cannot be made anew with other sizes; write it as a Functional or Sequential model"
            )
    if not model.built or not model.inputs:
        raise UsageError(f"the model {model.name!r} is not built: call it once, or give it an Input")


def _is_graph(model: Model) -> bool:
    """Whether a model is Functional or Sequential, with `call` as Keras has it."""
    import keras

    functional = keras.Model is not type(model) and hasattr(model, "_run_through_graph")
    return (isinstance(model, keras.Sequential) or functional) and type(model).call.__module__.startswith("keras.")


def unfolded(model: Model, shapes: Sequence[tuple[int, ...]]) -> Unfolded:
    """Trace, convert and normalise, for inputs of some shapes: what is computed from sizes is then constant.

    Raises InvalidModelError where TensorFlow or tf2onnx cannot.
    """
    recurrent = {id(variable) for layer in _recurrent(model) for variable in layer.weights}
    floats = [each for each in model.weights if "float" in str(each.dtype) and id(each) not in recurrent]
    variables = {f"v{number}": each for number, each in enumerate(floats)}
    trace = _Trace(model, variables)
    try:
        with quiet("tf2onnx", logging.CRITICAL), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the converter about numpy
            proto = trace.converted()
    except Exception as error:  # what a layer's code raises can be anything
        raise InvalidModelError(f"Keras cannot trace the model {model.name!r}: {first_line(error)}") from error
    sizes = {f"x{number}": list(shape) for number, shape in enumerate(shapes)}
    fix_input_shapes(proto, sizes)
    graph = normalize(proto, sizes)
    inputs = [value for value in graph.model.graph.input if value.name not in variables]
    outputs = [value for value in graph.model.graph.output if value.name.startswith("y")]
    for kept, field in ((inputs, graph.model.graph.input), (outputs, graph.model.graph.output)):
        del field[:]
        field.extend(kept)
    graph.model.graph.initializer.extend(numpy_helper.from_array(values_of(each), name) for name, each in variables.items())
    return Unfolded(Graph(graph.model, graph.shapes, graph.sized), variables, trace.uses, trace.producers)


def _recurrent(model: Model) -> list[Layer]:
    import keras

    return [each for each in layers_of(model) if isinstance(each, keras.layers.RNN)]


class _Trace:
    """One run of a model through TensorFlow's tracer, with notes of what each layer was called with and returned."""

    def __init__(self, model: Model, variables: dict[str, Variable]) -> None:
        self.uses: dict[int, list[Use]] = {}
        self.producers: dict[str, Layer] = {}
        self._model, self._variables = model, variables
        self._tensors: dict[int, tuple[str, Any]] = {}

    def converted(self) -> ModelProto:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf
        from keras.src.export.tf2onnx_lib import patch_tf2onnx
        from tf2onnx import tf_loader
        from tf2onnx.tfonnx import process_tf_graph

        patch_tf2onnx()
        inputs = [
            tf.TensorSpec((None, *each.shape[1:]), each.dtype, f"x{number}") for number, each in enumerate(self._model.inputs)
        ]
        weights = [tf.TensorSpec(each.shape, each.dtype, name) for name, each in self._variables.items()]
        traced = tf.function(self._run).get_concrete_function(*inputs, *weights)
        taken = [each.name for each in traced.inputs if each.dtype != tf.dtypes.resource]
        given = [each.name for each in traced.outputs]
        names = dict(zip(given, sorted(traced.structured_outputs), strict=True))
        names |= {name: name.split(":")[0] for name in taken}
        frozen = tf_loader.from_function(traced, taken, given)
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(frozen, name="")
            converted = process_tf_graph(
                graph, input_names=taken, output_names=given, tensors_to_rename=names, continue_on_error=True
            )
        model: ModelProto = converted.make_model("traced")  # not optimised: that takes most of the time, and shows nothing more
        return model

    def _run(self, *tensors: Any) -> dict[str, Any]:
        import keras
        import tensorflow as tf

        count = len(self._model.inputs)
        self.uses, self.producers, self._tensors = {}, {}, {}
        mapping = list(zip(self._variables.values(), tensors[count:], strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            results = self._through(self._model, list(tensors[:count]))
        found = {name: tf.identity(tensor) for name, tensor in self._tensors.values() if name}
        for number, tensor in enumerate(keras.tree.flatten(results)):
            found[f"y{number:06}"] = tf.identity(tensor)
        return found

    def _through(self, model: Model, inputs: Any) -> Any:
        import keras

        graph = model._functional if isinstance(model, keras.Sequential) else model
        return graph._run_through_graph(inputs, operation_fn=self._noted)

    def _noted(self, operation: Layer) -> Callable[..., Any]:
        import keras

        def call(*positional: Any, **named: Any) -> Any:
            if isinstance(operation, keras.Model):
                positional, named = (positional[0] if positional else named["inputs"],), {}
                results = self._through(operation, positional[0])
            else:
                training = {"training": False} if getattr(operation, "_call_has_training_arg", False) else {}
                results = operation(*positional, **named | training)
            use = Use(*(keras.tree.map_structure(self._value, each) for each in (positional, named, results)))
            self.uses.setdefault(id(operation), []).append(use)
            for value in values_in(use.results):
                self.producers.setdefault(value.name, operation)
            return results

        return call

    def _value(self, leaf: Any) -> Any:
        import keras

        if not keras.ops.is_tensor(leaf):
            return leaf
        dtype = leaf.dtype.name
        name = f"t{len(self._tensors):06}" if "float" in dtype else ""
        name, _ = self._tensors.setdefault(id(leaf), (name, leaf))
        return Value(name, tuple(leaf.shape), dtype)
