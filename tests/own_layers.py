"""Networks with layers and classes of a user's own, each of which is trained."""

import keras
import numpy as np
from keras import layers, ops

import tfcompress as tfc


@tfc.layers.register(
    kernel="matrix", positions=lambda inputs, outputs: outputs[1:-1]
)  # fmt: skip
@keras.saving.register_keras_serializable("own")
class Product(layers.Layer):
    """Product with a matrix of a name of its own, times a trained vector."""

    def __init__(self, units, activation=None, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.activation = keras.activations.get(activation)

    def build(self, input_shape):
        self.gain = self.add_weight(shape=(self.units,), initializer="ones")
        shape = (input_shape[-1], self.units)
        self.matrix = self.add_weight(shape=shape, initializer="he_normal")

    def call(self, inputs, training=None):
        return self.activation(ops.matmul(inputs, self.matrix) * self.gain)

    def get_config(self):
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "units": self.units, "activation": activation}


class OwnConv(layers.Conv2D):
    def __init__(self, filters, act="relu", **kwargs):
        super().__init__(filters, 3, padding="same", activation=act, **kwargs)


class Residual(layers.Layer):
    """Block of layers, without a `get_config`."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.convs = [layers.Conv2D(filters, 3, padding="same") for _ in range(2)]
        self.norms = [layers.BatchNormalization() for _ in range(2)]

    def call(self, inputs, training=None):
        x = inputs
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = ops.relu(norm(conv(x), training=training))
        return inputs + x


class Classifier(keras.Model):
    """Subclassed model of such blocks."""

    def __init__(self):
        super().__init__(name="classifier")
        self.stem = layers.Conv2D(8, 3, strides=2, name="stem")
        self.blocks = [Residual(8, name="first"), Residual(8, name="second")]
        self.pool = layers.GlobalAveragePooling2D()
        self.head = layers.Dense(3, name="head")

    def call(self, inputs, training=None):
        x = self.stem(inputs)
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(self.pool(x))


def _functional(*inner):
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="stem")(inputs)
    for layer in inner:
        x = layer(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def _subclassed():
    model = Classifier()
    model(images())
    return model


NETWORKS = {
    "blocks": lambda: _functional(Residual(8, name="one"), Residual(8, name="two")),
    "own kernel": lambda: _functional(
        Product(16, "relu", name="one"), Product(24, "relu", name="two")
    ),
    "subclass": lambda: _functional(OwnConv(8, name="one"), OwnConv(16, name="two")),
    "subclassed model": _subclassed,
}


def images(count=32):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 12, 12, 3)).astype("float32")
