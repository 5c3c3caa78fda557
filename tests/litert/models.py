"""Models of every kind that can be exported, and checks that tests share."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from tfcompress.litert.flatbuffer import operator_name, read
from tfcompress.litert.kernels import NATIVE_BITS, packed_kernels


def stacked(inputs, stack):
    """Model of layers that are called one after the other."""
    outputs = inputs
    for layer in stack:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def every_operator_in_every_width():
    x = inputs = keras.Input((12, 12, 5))
    for _ in range(3):  # three bit-widths rotate
        x = kl.Conv2D(7, 3, padding="same", activation="relu")(x)
    for _ in range(3):
        x = kl.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    x = kl.Reshape((12, -1))(x)
    for _ in range(3):
        x = kl.Conv1D(9, 3, activation="relu")(x)
    x = kl.Flatten()(x)
    for _ in range(3):
        x = kl.Dense(11)(x)
    return inputs, x


def conv2d():
    inputs = keras.Input((9, 10, 3))
    x = kl.Conv2D(6, 3, strides=2, padding="same", activation="relu")(inputs)
    x = kl.Conv2D(5, (1, 3), padding="valid", use_bias=False)(x)
    return inputs, kl.Dense(7, activation="softmax")(kl.Flatten()(x))


def grouped():
    inputs = keras.Input((9, 9, 8))
    x = kl.Conv2D(12, 3, groups=4)(inputs)
    return inputs, kl.Conv2D(24, 3, groups=12, padding="same")(x)


def dilated():
    inputs = keras.Input((14, 14, 3))
    x = kl.Conv2D(6, 3, dilation_rate=2, padding="same")(inputs)
    return inputs, kl.DepthwiseConv2D(3, dilation_rate=(3, 3))(x)


def depthwise():
    inputs = keras.Input((9, 9, 1))
    x = kl.DepthwiseConv2D(3, depth_multiplier=5)(inputs)
    return inputs, kl.DepthwiseConv2D(3, strides=2, depth_multiplier=3)(x)


def conv1d():
    inputs = keras.Input((20, 4))
    x = kl.Conv1D(6, 3, padding="same", strides=2)(inputs)
    x = kl.Conv1D(6, 3, padding="causal", dilation_rate=2, groups=2)(x)
    return inputs, kl.Conv1D(5, 1, activation="relu")(x)


def dense_on_sequences():
    inputs = keras.Input((None, 6))
    return inputs, kl.Dense(3, use_bias=False)(kl.Dense(5, activation="relu")(inputs))


def several_inputs_and_outputs():
    image, age = keras.Input((8, 8, 3), name="image"), keras.Input((5,), name="age")
    x = kl.GlobalAveragePooling2D()(kl.Conv2D(5, 3)(image))
    y = kl.Dense(5)(age)
    outputs = {"kind": kl.Dense(3)(kl.Add()([x, y])), "aged": kl.Dense(2)(y)}
    return {"image": image, "age": age}, outputs


def nested():
    inner_input = keras.Input((9, 9, 4))
    x = kl.ReLU()(kl.Conv2D(4, 3, padding="same", name="conv")(inner_input))
    inner = keras.Model(inner_input, x, name="inner")
    block = keras.Sequential([kl.Input((9, 9, 4)), kl.Conv2D(4, 1, name="conv")])
    inputs = keras.Input((9, 9, 3))
    x = kl.Conv2D(4, 3, padding="same", name="conv")(inputs)
    return inputs, block(inner(inner(x)))


def shared_layer():
    inputs = keras.Input((9, 9, 3))
    conv = kl.Conv2D(3, 3, padding="same")
    return inputs, conv(kl.ReLU()(conv(inputs)))


def normalized_before_and_after():
    x = inputs = keras.Input((9, 9, 3))
    for layer in (kl.Conv2D(5, 3), kl.DepthwiseConv2D(3), kl.Dense(6)):
        x = kl.BatchNormalization()(layer(kl.BatchNormalization()(kl.ReLU()(x))))
    return inputs, x


def one_weight_per_channel():
    x = inputs = keras.Input((4, 4, 3))
    for _ in range(2):
        x = kl.ReLU()(kl.BatchNormalization()(kl.DepthwiseConv2D(1)(x)))
    x = kl.BatchNormalization()(kl.Conv2D(1, 1)(x))
    x = kl.Dense(1)(kl.Flatten()(x))
    return inputs, kl.Dense(3)(kl.Dense(1)(x))


def zero_kernels():
    x = inputs = keras.Input((9, 9, 4))
    for i in range(4):
        x = kl.ReLU()(kl.Conv2D(4, 3, padding="same", name=f"zero{i}")(x))
    return inputs, kl.Conv2D(3, 1)(kl.Add()([x, inputs]))


def operations_that_are_no_layers():
    inputs = keras.Input((9, 9, 4))
    x = keras.ops.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 2]])
    return inputs, 1 - kl.Conv2D(3, 3)(x) * 2.0


def partly_float():
    inputs = keras.Input((9, 9, 4))
    x = kl.Conv2D(5, 3, name="float_conv")(inputs)
    return inputs, kl.Conv2D(5, 3)(kl.LayerNormalization()(kl.Dropout(0.5)(x)))


def any_image_size():
    inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(5, 3, padding="same", strides=2)(inputs)
    return inputs, kl.Dense(4)(kl.GlobalMaxPooling2D()(x))


def fixed_batch_size():
    inputs = keras.Input(batch_shape=(2, 9, 9, 3))
    return inputs, kl.Conv2D(5, 3)(inputs)


def integer_input():
    inputs = keras.Input((6,), dtype="int32")
    return inputs, kl.Conv1D(5, 3)(kl.Embedding(10, 8)(inputs))


def squeeze_and_excite():
    inputs = keras.Input((9, 9, 8))
    x = kl.GlobalAveragePooling2D(keepdims=True)(inputs)
    x = kl.Conv2D(8, 1, activation="sigmoid")(kl.Conv2D(2, 1, activation="relu")(x))
    return inputs, kl.Multiply()([inputs, x])


MODELS = [
    every_operator_in_every_width,
    conv2d,
    grouped,
    dilated,
    depthwise,
    conv1d,
    dense_on_sequences,
    several_inputs_and_outputs,
    nested,
    shared_layer,
    normalized_before_and_after,
    one_weight_per_channel,
    zero_kernels,
    operations_that_are_no_layers,
    partly_float,
    any_image_size,
    fixed_batch_size,
    integer_input,
    squeeze_and_excite,
]

# All kinds, of which a few stand for the others in the quick tests.
FEW_MODELS = [
    pytest.param(x, marks=[pytest.mark.slow] * (i % 4 > 0))
    for i, x in enumerate(MODELS)
]


def check_native_types(report, model):
    """Checks that each kernel has a container of its codes that its operator reads."""
    rows = {row["layer"]: row for row in report["layers"]}
    kernels = {kernel.layer: kernel for kernel in packed_kernels(model)}
    assert rows.keys() <= kernels.keys()
    for row in report["tensors"]:
        is_table = row["layer"] not in rows  # of an embedding
        assert is_table or row["type"] in {x["type"] for x in report["layers"]}
    for name, row in rows.items():
        bits = int(row["type"].removeprefix("INT"))
        is_decoded = row["reason"].startswith("decoded")
        assert bits in NATIVE_BITS[row["operator"]] or is_decoded
        assert np.abs(kernels[name].codes).max() <= 2 ** (bits - 1) - 1
        assert row["reason"]


def operators(content):
    """Names of a file's operators."""
    model = read(content)
    return [operator_name(model, x) for x in model.subgraphs[0].operators]
