"""Layers of a user's own, most of them without `get_config`."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops


class Block(layers.Layer):
    """Layer with sublayers in an attribute, a list, a dict and two models."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Conv2D(filters, 3, padding="same")
        self.norm = layers.BatchNormalization()
        self.drop = layers.Dropout(0.2)
        self.listed = [layers.Conv2D(filters, 1), layers.ReLU()]
        self.named = {"last": layers.Conv2D(filters, 1)}
        self.sequence = keras.Sequential([layers.Conv2D(filters, 1), layers.ReLU()])
        inputs = keras.Input((8, 8, filters))
        self.graph = keras.Model(inputs, layers.Conv2D(filters, 1)(inputs))

    def call(self, inputs, training=None):
        x = ops.relu(self.norm(self.first(inputs), training=training))
        x = self.drop(x, training=training)
        for part in self.listed:
            x = part(x)
        return inputs + self.graph(self.sequence(self.named["last"](x)))


class SubclassedModel(keras.Model):
    """Model with a `call` of its own, used as a layer."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(filters, 3, padding="same")
        self.block = Block(filters)

    def call(self, inputs):
        return self.block(self.conv(inputs))


class SeveralInputs(layers.Layer):
    """Layer of a dict and a keyword argument, that returns a dict and a tensor."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.left, self.right = layers.Conv2D(filters, 1), layers.Conv2D(filters, 1)

    def call(self, inputs, other=None, factor=1.0):
        x, y = self.left(inputs["x"]), self.right(other)
        return {"sum": x + y * factor, "x": x}, y


class Twice(layers.Layer):
    """Layer that calls one sublayer twice, and one that is given to it."""

    def __init__(self, conv, **kwargs):
        super().__init__(**kwargs)
        self.given, self.own = conv, layers.Conv2D(4, 1)

    def call(self, inputs):
        return self.own(ops.relu(self.own(self.given(inputs))))


class WithSwish(layers.Layer):
    """Layer with one that has no weights and no `get_config`."""

    class Swish(layers.Layer):
        def __init__(self, beta):
            super().__init__()
            self.beta = beta

        def call(self, inputs):
            return inputs * ops.sigmoid(self.beta * inputs)

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.swish = layers.Conv2D(filters, 1), self.Swish(1.5)

    def call(self, inputs):
        return self.swish(self.conv(inputs))


class WithResizing(layers.Layer):
    """Layer with one that is in training by default, as those of random images."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.norm = layers.Conv2D(4, 1), layers.BatchNormalization()

    def call(self, inputs):
        height, width = ops.shape(inputs)[1:3]
        x = ops.mean(inputs, axis=(1, 2), keepdims=True)
        return self.norm(self.conv(inputs + layers.Resizing(height, width)(x)))


class Whole(layers.Layer):
    """Layer with a sublayer and a configuration, which stays whole."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(4, 1)

    def call(self, inputs):
        return self.conv(inputs)


class OwnWeight(Whole):
    def build(self, shape):
        self.conv.build(shape)
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, inputs):
        return self.conv(inputs) * self.scale


class ReadWeight(OwnWeight):
    def call(self, inputs):
        return self.conv(inputs) * ops.exp(self.scale)


class Tied(Whole):
    def call(self, inputs):
        return ops.matmul(self.conv(inputs), ops.transpose(self.conv.kernel[0, 0]))


class Counter(OwnWeight):
    def call(self, inputs):
        self.scale.assign_add(1.0)
        return self.conv(inputs)


class TensorFlowVariable(Whole):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._scale = tf.Variable(2.0)

    def call(self, inputs):
        return self.conv(inputs) * tf.identity(self._scale)


class TensorFlowOperation(Whole):
    def call(self, inputs):
        return tf.nn.relu(self.conv(inputs))


class Branch(Whole):
    def call(self, inputs, training=None):
        x = self.conv(inputs)
        return ops.relu(x) if training else x


class ConstantOfTraining(Whole):
    def call(self, inputs, training=None):
        return self.conv(inputs) * (0.5 if training else 1.0)


class FrozenNorm(Whole):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.BatchNormalization()

    def call(self, inputs):
        return self.norm(self.conv(inputs), training=False)


class MonteCarlo(Whole):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5)

    def call(self, inputs):
        return self.drop(self.conv(inputs), training=True)


class AddsLoss(Whole):
    def call(self, inputs):
        x = self.conv(inputs)
        self.add_loss(ops.mean(x))
        return x


class AddsLossOfWeights(Whole):
    def call(self, inputs):
        self.add_loss(ops.mean(ops.ones((2,))))
        return self.conv(inputs)


class Metric(Whole):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mean = keras.metrics.Mean()


class Noise(Whole):
    def call(self, inputs):
        return self.conv(inputs) + 1e-7 * keras.random.normal((4,))


class OwnNoise(Whole):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(0)

    def call(self, inputs):
        return self.conv(inputs) + 1e-7 * keras.random.normal((4,), seed=self.seed)


class SideEffect(Whole):
    calls = 0

    def call(self, inputs):
        self.calls += 1
        return self.conv(inputs)


class Unused(Whole):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.other = layers.Conv2D(4, 1)

    def build(self, shape):
        self.conv.build(shape)
        self.other.build(shape)


class OwnDunderCall(Whole):
    def __call__(self, inputs, *args, **kwargs):
        return super().__call__(inputs, *args, **kwargs) * 2


class Regularized(Whole):
    def __init__(self, **kwargs):
        super().__init__(activity_regularizer="l2", **kwargs)

    def get_config(self):
        config = super().get_config()
        config.pop("activity_regularizer")
        return config


# Layers that stay whole, and a part of the reason.
WHOLE = {
    Tied: "reads the variable",
    Counter: "has no attribute 'assign_add'",
    TensorFlowVariable: "has a variable `_scale` that Keras does not track",
    TensorFlowOperation: "more than layers and keras.ops",
    Branch: "computes differently in training",
    ConstantOfTraining: "computes differently in training",
    FrozenNorm: "computes differently in training",
    MonteCarlo: "computes differently in training",
    AddsLoss: "adds a loss",
    AddsLossOfWeights: "adds a loss",
    Metric: "does not use",
    Noise: "reads the variable",
    OwnNoise: "variable",
    SideEffect: "changes its attribute `calls`",
    Unused: "does not use",
    OwnDunderCall: "has a `__call__` of its own",
    Regularized: "has an activity regularizer",
}

# Those of them that compute something else in each call, or when Keras records them.
UNEQUAL = (Noise, OwnNoise, MonteCarlo, OwnDunderCall)


def net(layer, several=False):
    """A classifier of images (8, 8, 4) around a layer, with weights of a training."""
    inputs = keras.Input((8, 8, 4), name="images")
    if several:
        outputs, y = layer({"x": inputs}, other=ops.relu(inputs), factor=0.5)
        x = outputs["sum"] + outputs["x"] * y
    else:
        x = layer(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x), name="net")
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) / 3)
    return model


def images(count=8):
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, 8, 8, 4)).astype("float32")
