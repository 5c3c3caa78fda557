"""Packed layers, compared with the plain layers of the same kernel."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from tfcompress import layers

# TensorFlow merges one of the two pads of a block with the convolution. If it is the
# wrong one, the process ends, in one of three runs.
SHORTCUTS_OF_PADS = """
import keras
import numpy as np
import tensorflow as tf
from tfcompress.layers import PackedConv2D

x = inputs = keras.Input((16, 16, 4))
for _ in range(24):
    pooled = keras.layers.AveragePooling2D(1)(x)
    shortcut = keras.ops.pad(pooled, [(0, 0), (0, 0), (0, 0), (1, 1)])
    conv = PackedConv2D(x.shape[-1] + 2, 3, kernel_bits=2)
    x = conv(keras.layers.ZeroPadding2D()(x))
    x = keras.layers.ReLU()(keras.layers.Add()([x, shortcut]))
keras.Model(inputs, x).predict(np.ones((2, 16, 16, 4), "float32"), verbose=0)
assert not tf.config.optimizer.get_experimental_options()["remapping"]
"""

CASES = {
    "conv2d": (layers.PackedConv2D, {"filters": 5, "kernel_size": 3}, (8, 8, 3)),
    "conv1d": (layers.PackedConv1D, {"filters": 5, "kernel_size": 3}, (10, 3)),
    "depthwise": (
        layers.PackedDepthwiseConv2D,
        {"kernel_size": 3, "depth_multiplier": 2},
        (8, 8, 3),
    ),
    "dense": (layers.PackedDense, {"units": 5}, (7,)),
}


def packed_model(cls, config, shape, bits):
    layer = cls(**config, kernel_bits=bits)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    rng = np.random.default_rng(bits)
    limit = 2 ** (bits - 1) - 1
    codes = rng.integers(-limit, limit + 1, layer.kernel_shape).astype(np.int8)
    scale = rng.uniform(0.01, 1, layer.kernel_scale.shape).astype("float32")
    layer.set_kernel(codes, scale)
    layer.bias.assign(rng.normal(size=layer.bias.shape))
    return model, layer, codes, scale


@pytest.mark.parametrize("cls, config, shape", CASES.values(), ids=CASES)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_packed_layer_computes_with_its_codes_and_reloads_exactly(
    cls, config, shape, bits, tmp_path
):
    model, layer, codes, scale = packed_model(cls, config, shape, bits)
    np.testing.assert_array_equal(layer.codes, codes)
    np.testing.assert_array_equal(layer.kernel, codes * scale)

    plain = cls.__bases__[1](**config)
    plain.build((None, *shape))
    plain.set_weights([codes * scale, layer.bias])
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    predictions = np.asarray(model(x))
    np.testing.assert_allclose(predictions, plain(x), rtol=1e-5, atol=1e-5)

    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(restored(x), predictions)
    np.testing.assert_array_equal(restored.layers[1].codes, codes)


@pytest.mark.parametrize("activation", ["linear", "relu6"])
@pytest.mark.parametrize("cls, config, shape", CASES.values(), ids=CASES)
@pytest.mark.parametrize("bits", [2, 8])
def test_integer_layer_rounds_sums_of_integers(
    cls, config, shape, bits, activation, tmp_path
):
    config = {**config, "activation": activation, "integer": True}
    model, layer, codes, scale = packed_model(cls, config, shape, bits)
    steps = np.float32([0.037, 0.21])
    layer.set_steps(steps)
    levels = np.random.default_rng(0).integers(-128, 256, (4, *shape))
    found = np.asarray(model(np.float32(levels) * steps[0]))

    del config["integer"]
    config = {**config, "activation": None, "use_bias": False, "dtype": "float64"}
    plain = cls.__bases__[1](**config)
    plain.build((None, *shape))
    plain.set_weights([codes])
    unit = steps[0] * scale.reshape(-1)
    sums = np.array(plain(levels.astype("float64"))) + np.round(layer.bias / unit)
    expected = np.round(np.float32(sums) * (unit / steps[1])) * steps[1]
    if activation == "relu6":
        expected = np.clip(expected, 0, 6)
    np.testing.assert_array_equal(found, expected)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(restored(np.float32(levels) * steps[0]), found)


@pytest.mark.parametrize("bits, container", [(2, 2), (3, 4), (4, 4), (7, 8), (8, 8)])
def test_packed_kernel_takes_the_bytes_of_its_container(bits, container):
    _, layer, codes, _ = packed_model(layers.PackedDense, {"units": 5}, (7,), bits)
    assert layer.container_bits == container
    assert layer.kernel_variable.dtype == "uint8"
    assert layer.kernel_variable.shape == (-(-7 * 5 * container // 8),)


def test_packed_layer_is_not_trainable():
    model, layer, *_ = packed_model(layers.PackedDense, {"units": 5}, (7,), 2)
    assert not model.trainable_variables
    assert "kernel_initializer" not in layer.get_config()


@pytest.mark.parametrize(
    "codes, scale, message",
    [
        (np.zeros((7, 4)), np.ones((1, 5)), r"shape \(7, 5\).*Received"),
        (np.zeros((7, 5)), np.ones(5), r"scales of shape \(1, 5\)"),
        (np.zeros((7, 5)), np.zeros((1, 5)), "positive and finite"),
        (np.zeros((7, 5)), np.full((1, 5), np.nan), "positive and finite"),
        (np.full((7, 5), 2), np.ones((1, 5)), r"must lie in \[-2, 1\]"),
    ],
)
def test_set_kernel_refuses_wrong_codes_and_scales(codes, scale, message):
    _, layer, before, _ = packed_model(layers.PackedDense, {"units": 5}, (7,), 2)
    with pytest.raises(ValueError, match=message):
        layer.set_kernel(codes, scale)
    np.testing.assert_array_equal(layer.codes, before)


def test_packed_layer_refuses_bits_outside_of_2_to_8():
    with pytest.raises(ValueError, match="2 to 8 bits.*bits=1"):
        layers.PackedDense(5, kernel_bits=1)


@pytest.mark.slow
def test_shortcuts_of_pads_are_predicted_without_a_crash():
    command = [sys.executable, "-c", SHORTCUTS_OF_PADS]
    assert subprocess.run(command, capture_output=True).returncode == 0
