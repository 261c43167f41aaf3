"""Small Keras networks for the way back: random weights, so that every channel matters."""

from __future__ import annotations

from typing import Any

import framework_keras
import keras
import numpy as np
from keras import layers, ops


def randomised(model: Any) -> Any:
    rng = np.random.default_rng(0)
    for each in model.weights:
        positive = "variance" in each.path or "gamma" in each.path
        each.assign(rng.uniform(0.5, 1.5, each.shape) if positive else 0.3 * rng.standard_normal(each.shape))
    return model


def residual() -> Any:
    return framework_keras.resnet()


def mobile() -> Any:
    """Depthwise, transposed and separable convolutions, squeeze and excitation, slopes, a classifier on pixels."""
    x = keras.Input((8, 8, 4), name="image")
    y = layers.BatchNormalization(scale=False)(layers.Conv2D(12, 3, use_bias=False)(x))
    y = layers.PReLU(shared_axes=[1, 2])(y)
    y = layers.ReLU(6)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(y)))
    gate = layers.Conv2D(6, 1, activation="relu")(layers.GlobalAveragePooling2D(keepdims=True)(y))
    y = layers.Multiply()([y, layers.Conv2D(12, 1, activation="sigmoid")(gate)])
    y = layers.BatchNormalization()(layers.Conv2DTranspose(10, 3, use_bias=False)(y))
    y = layers.Concatenate()([layers.SeparableConv2D(8, 3)(y), layers.Conv2D(6, 3, activation="swish")(y)])
    return keras.Model(x, layers.Dense(3, name="head")(layers.Dropout(0.1)(layers.Flatten()(y))))


def transformer() -> Any:
    x = keras.Input((7, 10))
    y = layers.Dense(20)(x)
    return keras.Model(x, layers.Dense(5, name="head")(framework_keras.layer(y)))


def attention() -> Any:
    x = keras.Input((7, 10), name="x")
    y = layers.Dense(16)(x)
    y = y + layers.MultiHeadAttention(4, 6)(y, y)
    return keras.Model(x, layers.Dense(5)(y))


def recurrent() -> Any:
    x = keras.Input((7, 10))
    y = layers.TimeDistributed(layers.Dense(12))(x)
    y = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(y)
    return keras.Model(x, layers.Dense(5)(layers.LSTM(6)(y)))


def nested() -> Any:
    """Models in models, one of them called twice, words and numbers as inputs, two results."""
    inner, other = (
        keras.Sequential([keras.Input((16,)), layers.Dense(12, activation="relu"), layers.Dense(16)]) for _ in range(2)
    )
    z = keras.Input((16,))
    outer = keras.Model(z, layers.Dense(10)(other(z) + z))
    words, x = keras.Input((7,), dtype="int32", name="words"), keras.Input((6,), name="numbers")
    y = layers.GlobalMaxPooling1D()(layers.Conv1D(16, 3)(layers.Embedding(20, 12)(words)))
    y = outer(inner(inner(y + layers.Dense(16)(x))))
    return keras.Model({"words": words, "numbers": x}, {"b": layers.Dense(3)(y), "a": layers.Dense(2)(y)})


def sequential() -> Any:
    first = [keras.Input((8, 8, 3)), layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU(), layers.Conv2D(12, 3)]
    return keras.Sequential([*first, layers.Reshape((16, 12)), layers.LSTM(6), layers.Dense(6), layers.Dense(4)])


def grouped() -> Any:
    x = keras.Input((8, 8, 3))
    y = layers.GroupNormalization(4)(layers.Conv2D(16, 3)(x))
    y = layers.LayerNormalization()(layers.Conv2D(8, 3)(y))
    return keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(y)))


def perceptron(*between: Any) -> Any:
    """Twelve channels go through the layers given."""
    return keras.Sequential([keras.Input((6,)), layers.Dense(12), *between, layers.Dense(3)])


class Width(layers.Layer):
    """A user's layer that names its size in its own way."""

    def __init__(self, width: int, **options: Any) -> None:
        super().__init__(**options)
        self.width = width

    def build(self, shape: Any) -> None:
        self.matrix = self.add_weight(shape=(shape[-1], self.width), name="matrix")

    def call(self, x: Any) -> Any:
        return ops.matmul(x, self.matrix)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width}


class Fixed(Width):
    """Its code has the size in it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(8, **options)

    def build(self, shape: Any) -> None:
        self.matrix = self.add_weight(shape=(12, 8), name="matrix")

    def get_config(self) -> dict[str, Any]:
        return layers.Layer.get_config(self)


class Unsaid(Width):
    """Its configuration does not have what it is made with."""

    def get_config(self) -> dict[str, Any]:
        return layers.Layer.get_config(self)


class Tied(layers.Layer):
    """It uses the weight of another layer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.matrix = None

    def build(self, shape: Any) -> None:
        if self.matrix is None:
            self.matrix = self.add_weight(shape=(shape[-1], shape[-1]), name="matrix")

    def call(self, x: Any) -> Any:
        return ops.matmul(x, self.matrix)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.head = layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.head(x)
