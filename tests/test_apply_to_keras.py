"""Plans applied to Keras models: outputs equal the pruned ONNX model, models train, save and load.

Needs the keras extra: `pytest -m keras`.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphprune
from graphprune.errors import InvalidModelError, ProofError, UsageError
from graphprune.exporters.keras3 import apply as back
from graphprune.model_file import write_model
from graphprune.pipeline import load_whole
from graphprune.plan import write_weights
from graphprune.runtime import random_inputs, run

keras = pytest.importorskip("keras")
nets = pytest.importorskip("keras_nets")
layers = keras.layers

pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("ignore")]  # TensorFlow and its converter warn about themselves


FIXED = {"attention", "recurrent"}
"""Networks in which the converter computes shapes that nobody can cut, unless the batch is fixed."""


@cache
def original(name: str) -> tuple[Any, Any]:
    """(model, normalised graph), imported once."""
    model = nets.randomised(getattr(nets, name)())
    if name not in FIXED:
        return model, graphprune.load(model)
    return model, load_whole(model, {model.inputs[0].name: [1, *model.inputs[0].shape[1:]]})


def pruned(graph: Any, **options: Any) -> Any:
    return graphprune.prune(graph, **{"targets": "channels=0.5", "align": 1, "selection": "uniform"} | options)


def called(model: Any, feeds: Any) -> list[Any]:
    arrays = [feeds[each.name] for each in model.inputs] if len(feeds) > 1 else list(feeds.values())
    given = arrays[0] if isinstance(model, keras.Sequential) else keras.tree.pack_sequence_as(model.input, arrays)
    return [np.asarray(each) for each in keras.tree.flatten(model(given, training=False))]


def assert_equal(model: Any, result: Any) -> None:
    """On inputs that the proof did not see."""
    feeds = random_inputs(result.original, seed=77)
    own = called(model, feeds)
    expected = run(result.model, feeds).values()
    assert sorted(each.shape for each in own) == sorted(each.shape for each in expected)
    for each in own:
        errors = [np.abs(each - other).max() for other in expected if other.shape == each.shape]
        assert min(errors) <= 1e-5 * max(np.abs(each).max(), 1e-2)


SMALL = ["residual", "mobile", "transformer", "attention", "recurrent", "nested", "sequential"]


@pytest.mark.parametrize("name", SMALL)
def test_the_new_model_computes_what_the_pruned_model_computes(name: str, tmp_path: Path) -> None:
    model, graph = original(name)
    result = pruned(graph)
    before = [np.array(each) for each in model.weights]
    applied = graphprune.apply_to_keras(model, result)
    made = applied.model
    assert applied.max_error <= 1e-5
    assert type(made) is type(model)
    assert made is not model
    assert_equal(made, result)
    assert all(np.array_equal(a, np.array(b)) for a, b in zip(before, model.weights, strict=True))
    assert made.count_params() < 0.75 * model.count_params()
    for old, new in zip(model.weights, made.weights, strict=True):
        kept = applied.kept.get(old.path, {})
        assert tuple(new.shape) == tuple(len(kept.get(axis, range(size))) for axis, size in enumerate(old.shape))
    made.save(tmp_path / "pruned.keras")
    assert_equal(keras.saving.load_model(tmp_path / "pruned.keras"), result)
    fit_one_step(made)


def fit_one_step(model: Any) -> None:
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 9, (2, *each.shape[1:])).astype(each.dtype) for each in model.inputs]
    x = x[0] if isinstance(model, keras.Sequential) else keras.tree.pack_sequence_as(model.input, x)
    y = keras.tree.map_structure(lambda each: np.ones(each.shape, np.float32), model(x))
    before = [np.array(each) for each in model.trainable_weights]
    model.compile(keras.optimizers.SGD(0.1), loss=keras.tree.map_structure(lambda _: "mse", y))
    model.fit(x, y, batch_size=2, epochs=1, verbose=0)
    assert sum(not np.array_equal(a, np.array(b)) for a, b in zip(before, model.trainable_weights, strict=True)) > len(before) / 2


def test_heads_and_their_sizes_leave_keras_attention() -> None:
    model, graph = original("attention")
    result = pruned(graph, targets=(), ratios=[".*=0.5"])
    made = graphprune.apply_to_keras(model, result).model
    layer = next(each for each in made.layers if isinstance(each, layers.MultiHeadAttention))
    assert (layer.num_heads, layer.key_dim, layer.value_dim) == (2, 3, 3)


def test_a_file_of_the_command_line_with_a_fixed_batch(graphprune_cli: Any, tmp_path: Path) -> None:
    """The way that docs/importers.md shows for attention."""
    model, _ = original("attention")
    model.save(tmp_path / "net.keras")
    done = graphprune_cli("import", tmp_path / "net.keras", "-o", tmp_path / "net.onnx", "--input-shape", "x=1,7,10")
    assert done.exit_code == 0, done.stderr
    result = pruned(tmp_path / "net.onnx")
    assert {group.size for group in result.analysis.groups} == {16, 4, 6}
    plan = result.plan
    assert_equal(graphprune.apply_to_keras(model, plan, tmp_path / "net.onnx").model, result)


def test_all_of_a_recurrent_network_shrinks() -> None:
    model, graph = original("recurrent")
    made = graphprune.apply_to_keras(model, pruned(graph)).model
    spread, both, last = made.layers[1:4]
    assert (spread.layer.units, both.forward_layer.units, both.backward_layer.units, last.units) == (6, 4, 4, 3)


def test_groups_that_are_left_are_counted() -> None:
    model, graph = original("grouped")
    result = pruned(graph, normalization="kept")
    made = graphprune.apply_to_keras(model, result).model
    norm = next(each for each in made.layers if isinstance(each, layers.GroupNormalization))
    assert norm.gamma.shape[0] < 16
    assert_equal(made, result)


def test_shared_and_frozen_layers_stay_so_and_the_model_stays_compiled() -> None:
    model = nets.randomised(nets.nested())
    next(each for each in model.layers if isinstance(each, layers.Embedding)).trainable = False
    model.compile("adam", {"b": "mse", "a": "mse"})
    made = graphprune.apply_to_keras(model, pruned(graphprune.load(model))).model
    assert len(made.weights) == len(model.weights)
    assert [each.trainable for each in made.weights] == [each.trainable for each in model.weights]
    assert not all(each.trainable for each in made.weights)
    assert made.compiled


REPAIRED = ["residual", "mobile", "recurrent"]


@pytest.mark.parametrize("name", REPAIRED)
def test_repaired_weights_come_along(name: str, tmp_path: Path) -> None:
    model, graph = original(name)
    rng = np.random.default_rng(1)
    shape = graph.inputs[0].type.tensor_type.shape.dim
    samples = rng.standard_normal((8, *(each.dim_value for each in shape[1:]))).astype(np.float32)
    np.savez(tmp_path / "samples.npz", **{graph.inputs[0].name: samples})
    result = pruned(graph, repair="reconstruct", calibration=str(tmp_path / "samples.npz"))
    assert result.weights
    applied = graphprune.apply_to_keras(model, result)
    assert_equal(applied.model, result)
    plain = graphprune.apply_to_keras(model, dataclasses.replace(result.plan, weights_sha256=""), graph).model
    feeds = random_inputs(result.original, seed=1)
    a, b = (called(each, feeds)[0] for each in (applied.model, plain))
    assert np.abs(a - b).max() > 1e-3 * np.abs(a).max()
    write_model(graph.model, tmp_path / "model.onnx")
    (tmp_path / "plan.json").write_text(result.plan.to_json())
    write_weights(tmp_path / "plan.json", result.weights)
    again = graphprune.apply_to_keras(model, tmp_path / "plan.json", tmp_path / "model.onnx")
    assert_equal(again.model, result)


def test_a_pruned_model_is_pruned_again() -> None:
    model, graph = original("residual")
    once = graphprune.apply_to_keras(model, pruned(graph, targets="channels=0.7")).model
    result = pruned(once, targets="channels=0.7")
    twice = graphprune.apply_to_keras(once, result).model
    assert_equal(twice, result)
    assert twice.count_params() < once.count_params() < model.count_params()


def test_layers_of_the_user_and_functions() -> None:
    between = [nets.Width(12), layers.Lambda(lambda x: 2 * x + 1), layers.Reshape((1, 12)), layers.Flatten(), nets.Width(8)]
    model = nets.randomised(nets.perceptron(*between))
    result = pruned(model, targets="channels=0.6")
    made = graphprune.apply_to_keras(model, result).model
    assert_equal(made, result)
    assert made.layers[5].width < 8


# ---- what is refused --------------------------------------------------------------------------------


def refused(model: Any, match: str, kind: type[Exception] = UsageError, plan: Any = None, **options: Any) -> None:
    with pytest.raises(kind, match=match):
        graphprune.apply_to_keras(model, pruned(model) if plan is None else plan, **options)


def test_code_with_sizes_in_it_is_named() -> None:
    refused(
        nets.randomised(nets.perceptron(nets.Fixed(name="mine"))), r"layer '.*/mine' \(Fixed\): no configuration .*get_config"
    )
    twice = layers.Lambda(lambda x: x * np.linspace(1, 2, 12, dtype=np.float32), name="scaled")
    refused(nets.randomised(nets.perceptron(twice)), r"layer '.*/scaled' \(Lambda\): no configuration .*shape")


def test_layers_that_cannot_be_made_anew() -> None:
    x = keras.Input((6,))
    model = keras.Model(x, layers.Concatenate()([nets.Unsaid(3, name="mine")(x), nets.perceptron()(x)]))
    refused(nets.randomised(model), r"layer 'mine' \(Unsaid\) cannot be made from its configuration: .*__init__\(\) takes")

    class Secret(nets.Width):
        def get_config(self) -> Any:
            raise NotImplementedError("no")

    refused(nets.randomised(nets.perceptron(Secret(8, name="mine"))), r"layer '.*/mine' \(Secret\) has no configuration .*: no")


def test_weights_that_two_layers_share() -> None:
    x = keras.Input((6,))
    first = layers.Dense(12, use_bias=False)
    y = first(layers.Dense(12)(x))
    second = nets.Tied(name="mine")
    second.matrix = first.kernel
    model = keras.Model(x, layers.Dense(3)(y + second(y)))
    refused(nets.randomised(model), r"share the weight .*Keras would make two of it")


def test_sizes_that_only_the_keras_model_has() -> None:
    x = keras.Input((6,))
    y = keras.ops.reshape(keras.ops.reshape(layers.Dense(12)(x), (-1, 3, 4)), (-1, 12))
    model = nets.randomised(keras.Model(x, layers.Dense(3)(y * np.arange(12, dtype=np.float32))))
    refused(model, r"(?s)the plan does not fit the model: .*sizes there that the ONNX model has not")


def test_models_that_are_no_graph_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    _, graph = original("sequential")
    plan = pruned(graph)
    refused(layers.Dense(3), "expected a keras.Model, got Dense", plan=plan)
    model = nets.Subclassed()
    model(np.zeros((1, 6), np.float32))
    refused(model, r"\(Subclassed\) has code of its own instead of a graph of layers", plan=plan)
    refused(keras.Sequential([layers.Dense(3)]), "is not built: call it once", plan=plan)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    refused(original("sequential")[0], r"Keras runs on jax: .* KERAS_BACKEND=tensorflow", plan=plan)


def test_plans_that_layers_cannot_follow() -> None:
    model, graph = original("residual")
    refused(model, "prune with --mode coupled", plan=pruned(graph, mode="unconstrained"))
    dropped = graphprune.prune(graph, targets="channels=0.4", align=1, min_channels=0, selection="blocks")
    assert not all(dropped.keep.values())
    refused(model, r"drops whole branches .*--min-channels 1", plan=dropped)


def test_models_that_do_not_fit_the_plan() -> None:
    model, graph = original("residual")
    plan = pruned(graph)
    other = keras.models.clone_model(model)
    refused(other, r"does not compute the ONNX model's output .*: give it the weights", plan=plan)
    refused(original("nested")[0], r"the ONNX model has 1 inputs .*, the Keras model 2 \(.*words", plan=plan)
    refused(model, r"takes 1 inputs \(.*\), example_inputs are 2", plan=plan, example_inputs=[np.zeros(3), np.zeros(3)])
    refused(model, "cannot be called: .*Give example_inputs", plan=plan, example_inputs=np.zeros((1, 5), np.float32))
    refused(model, "the plan is for another model.*give onnx_model", plan=dataclasses.replace(plan.plan, model_sha256="0" * 64))


def test_models_that_cannot_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = original("sequential")
    monkeypatch.setattr(model.layers[0].__class__, "call", lambda self, x: x.numpy())
    monkeypatch.setattr(back._Back, "_matched_outputs", lambda self: [])
    refused(model, "Keras cannot trace the model", InvalidModelError, pruned(graph))


def test_an_outcome_that_differs_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its correction attention divides by the root of another size."""
    model, graph = original("attention")
    monkeypatch.setattr(back, "SCALED_BY", {})
    refused(model, "differs from the pruned ONNX model at output", ProofError, pruned(graph))


def test_examples_can_be_given() -> None:
    model, graph = original("nested")
    example = {"words": np.arange(14).reshape(2, 7), "numbers": np.ones((2, 6), np.float32)}
    assert graphprune.apply_to_keras(model, pruned(graph), example_inputs=example).max_error <= 1e-5
