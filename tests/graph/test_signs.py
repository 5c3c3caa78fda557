"""Signs of tensors, from graphs and compared with the outputs of the models."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfcompress.graph.graph import Graph
from tfcompress.graph.signs import may_be_negative
from tfcompress.layers.tensors.masking import AttachMask, ReadMask
from tfcompress.layers.tensors.steps import MergeSteps, SplitSteps


def relu(x):
    return layers.ReLU()(x)


def conv(x, **config):
    return layers.Conv2D(2, 3, padding="same", **config)(x)


def nested(x, inner):
    inputs = keras.Input(x.shape[1:])
    return keras.Model(inputs, inner(inputs))(x)


class Shifted(layers.Layer):
    """Layer of another package, which computes more after its activation."""

    activation = staticmethod(keras.activations.relu)

    def call(self, x):
        return self.activation(x) - 1.0


NONNEGATIVE = {
    "relu": relu,
    "activation": layers.Activation("relu6"),
    "softmax": layers.Softmax(),
    "conv with activation": lambda x: conv(x, activation="relu"),
    "dense with sigmoid": layers.Dense(2, activation="sigmoid"),
    "function": keras.activations.relu,
    "operation": ops.relu6,
    "square": ops.square,
    "sum": lambda x: layers.Add()([relu(x), relu(-x)]),
    "sum operation": lambda x: relu(x) + relu(-x),
    "product": lambda x: layers.Multiply()([relu(x), layers.Activation("sigmoid")(x)]),
    "concatenation": lambda x: ops.concatenate([relu(x), ops.abs(x)]),
    "max pooling": lambda x: layers.MaxPooling2D()(relu(x)),
    "average pooling": lambda x: layers.GlobalAveragePooling2D()(relu(x)),
    "padding": lambda x: layers.ZeroPadding2D()(relu(x)),
    "cropping": lambda x: layers.Cropping2D()(relu(x)),
    "dropout, flatten": lambda x: layers.Flatten()(layers.Dropout(0.5)(relu(x))),
    "mask": lambda x: AttachMask()(relu(x), ReadMask(2)(x)),
    "steps": lambda x: SplitSteps()(MergeSteps()(relu(x)), x),
    "upsampling": lambda x: layers.UpSampling2D(interpolation="bilinear")(relu(x)),
    "into a nested model": lambda x: nested(relu(x), layers.MaxPooling2D()),
    "out of a nested model": lambda x: layers.Flatten()(nested(x, relu)),
}
MAY_BE_NEGATIVE = {
    "identity": layers.Identity(),
    "conv": conv,
    "conv after relu": lambda x: conv(relu(x)),
    "tanh": lambda x: conv(x, activation="tanh"),
    "batch normalization": lambda x: layers.BatchNormalization()(relu(x)),
    "relu with a slope": layers.ReLU(negative_slope=0.1),
    "leaky relu": layers.LeakyReLU(),
    "function with a slope": lambda x: keras.activations.relu(x, negative_slope=0.1),
    "function with a threshold": lambda x: keras.activations.relu(x, threshold=-1),
    "sum with a signed tensor": lambda x: layers.Add()([relu(x), x]),
    "sum operation": lambda x: relu(x) + x,
    "negative constant": lambda x: relu(x) - 1.0,
    "constant added": lambda x: relu(x) + (-1.0),
    "constant factor": lambda x: relu(x) * -1.0,
    "difference": lambda x: layers.Subtract()([relu(x), relu(x)]),
    "concatenation": lambda x: layers.Concatenate()([relu(x), x]),
    "pooling": layers.MaxPooling2D(),
    "padding": layers.ZeroPadding2D(),
    "upsampling that overshoots": lambda x: layers.UpSampling2D(
        interpolation="bicubic"
    )(relu(x)),
    "into a nested model": lambda x: nested(x, layers.MaxPooling2D()),
    "layer of another package": Shifted(),
}
CASES = [(f, False) for f in NONNEGATIVE.values()]
CASES += [(f, True) for f in MAY_BE_NEGATIVE.values()]


@pytest.mark.parametrize("function, negative", CASES,
                         ids=[*NONNEGATIVE, *MAY_BE_NEGATIVE])  # fmt: skip
def test_may_be_negative_tells_the_sign_of_an_operation(function, negative):
    inputs = keras.Input((6, 6, 2))
    model = keras.Model(inputs, function(inputs))
    graph = Graph(model)
    (output,) = graph.outputs
    assert may_be_negative(graph)(output) == negative
    if not negative:
        x = np.random.default_rng(0).normal(size=(20, 6, 6, 2)).astype("float32")
        assert np.min(model(x)) >= 0


def test_model_inputs_may_be_negative():
    inputs = keras.Input((4,))
    graph = Graph(keras.Model(inputs, layers.Dense(2, activation="relu")(inputs)))
    (call,) = [c for c in graph.calls if isinstance(c.operation, layers.Dense)]
    assert may_be_negative(graph)(call.inputs[0])


def test_may_be_negative_tells_calls_of_a_shared_layer_apart():
    inputs = keras.Input((4, 4, 2))
    pool = layers.MaxPooling2D(1)
    graph = Graph(keras.Model(inputs, [pool(relu(inputs)), pool(inputs)]))
    negative = may_be_negative(graph)
    assert len(graph.calls_of(pool)) == 2
    assert [negative(output) for output in graph.outputs] == [False, True]
