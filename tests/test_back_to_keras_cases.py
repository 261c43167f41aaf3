"""Keras models as users have them: losses of their own, subclassed models, named inputs.  Needs the keras extra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphprune

keras = pytest.importorskip("keras")
layers = keras.layers

pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("ignore")]


def squares(wanted: Any, given: Any) -> Any:
    return keras.ops.mean((wanted - given) ** 2)


class Squares(keras.losses.Loss):
    def call(self, wanted: Any, given: Any) -> Any:
        return squares(wanted, given)


class Error(keras.metrics.MeanSquaredError):
    pass


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("loss", [squares, Squares(), lambda wanted, given: 2 * squares(wanted, given), "mse"])
def test_a_loss_that_keras_cannot_make_anew(loss: Any, sequential: bool) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(32, activation="relu"), layers.Dense(3)])
    if not sequential:
        model = keras.Model(model.inputs, model.outputs)
    model.compile(optimizer=keras.optimizers.SGD(0.0123), loss=loss, metrics=[Error()])
    applied = graphprune.apply_to_keras(model, graphprune.prune(model, targets="params=0.5"))
    assert model.compiled
    assert applied.model.compiled
    assert applied.model.optimizer is not model.optimizer
    assert float(applied.model.optimizer.learning_rate) == pytest.approx(0.0123)
    applied.model.fit(np.zeros((4, 8)), np.zeros((4, 3)), verbose=0)


def test_a_subclassed_model_that_has_been_called() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = layers.Dense(32, activation="relu"), layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.last(self.first(x))

    model = Own()
    model(np.zeros((2, 8), np.float32))
    result = graphprune.prune(model, targets="params=0.5")
    assert result.proof is not None
    assert result.proof.passed


def test_examples_by_name_go_where_their_names_say() -> None:
    b, a = keras.Input((8,), name="b"), keras.Input((4,), name="a")
    x = layers.Concatenate()([layers.Dense(32, activation="relu")(b), a])
    model = keras.Model([b, a], layers.Dense(3)(x))
    result = graphprune.prune(model, targets="params=0.5")
    examples = {"a": np.ones((2, 4), np.float32), "b": np.ones((2, 8), np.float32)}
    assert graphprune.apply_to_keras(model, result, example_inputs=examples).max_error < 1e-5
