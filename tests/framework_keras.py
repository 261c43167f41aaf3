"""A small ResNet and a small transformer in Keras."""

from __future__ import annotations

import keras
from keras import layers, ops

HEAD = "head/kernel"


def block(x, inner: int):
    channels = x.shape[-1]
    y = layers.Conv2D(inner, 3, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(channels, 3, padding="same", use_bias=False)(y))
    return layers.ReLU()(layers.Add()([x, y]))


def resnet():
    keras.utils.set_random_seed(0)
    x = keras.Input((16, 16, 3))
    y = block(layers.ReLU()(layers.Conv2D(16, 3, padding="same")(x)), 24)
    y = layers.ReLU()(layers.Conv2D(24, 3, strides=2, padding="same")(y))
    y = layers.GlobalAveragePooling2D()(block(block(y, 16), 24))
    return keras.Model(x, layers.Dense(5, name="head")(y))


def layer(x, width: int = 20, heads: int = 4, size: int = 6, inner: int = 40):
    y = layers.LayerNormalization(epsilon=1e-5)(x)
    q, k, v = (layers.Permute((2, 1, 3))(layers.Reshape((-1, heads, size))(layers.Dense(heads * size)(y))) for _ in range(3))
    scores = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / size**0.5, axis=-1)
    y = layers.Reshape((-1, heads * size))(layers.Permute((2, 1, 3))(ops.matmul(scores, v)))
    x = layers.Add()([x, layers.Dense(width)(y)])
    y = layers.Dense(inner, activation="relu")(layers.LayerNormalization(epsilon=1e-5)(x))
    return layers.Add()([x, layers.Dense(width)(y)])


def transformer():
    keras.utils.set_random_seed(0)
    x = keras.Input((7, 10))
    return keras.Model(x, layers.Dense(5, name="head")(layer(layer(layers.Dense(20)(x)))))
