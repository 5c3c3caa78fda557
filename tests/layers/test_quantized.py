"""Quantized layers, compared with the plain layers of the quantized kernel."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress import layers
from tfcompress.layers.batch_norm import fold
from tfcompress.quantizers import Ternary, Uniform

CASES = {
    "conv2d": (layers.QuantConv2D, {"filters": 6, "kernel_size": 3}, (8, 8, 4)),
    "conv2d grouped": (
        layers.QuantConv2D,
        {"filters": 6, "kernel_size": 3, "groups": 2, "strides": 2, "padding": "same"},
        (9, 9, 4),
    ),
    "conv1d": (layers.QuantConv1D, {"filters": 5, "kernel_size": 3}, (10, 4)),
    "conv1d causal": (
        layers.QuantConv1D,
        {"filters": 5, "kernel_size": 3, "padding": "causal", "dilation_rate": 2},
        (10, 4),
    ),
    "depthwise": (
        layers.QuantDepthwiseConv2D,
        {"kernel_size": 3, "depth_multiplier": 2, "activation": "relu"},
        (8, 8, 4),
    ),
    "dense": (layers.QuantDense, {"units": 5}, (12,)),
    "dense rank 3": (layers.QuantDense, {"units": 5, "use_bias": False}, (7, 12)),
}
cases = pytest.mark.parametrize("cls, config, shape", CASES.values(), ids=CASES)


def model_of(layer, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


def data(shape, samples=4):
    return np.random.default_rng(0).normal(size=(samples, *shape)).astype("float32")


@cases
@pytest.mark.parametrize("quantizer", [Ternary, Uniform])
def test_quantized_layer_equals_the_keras_layer_with_its_kernel(
    cls, config, shape, quantizer
):
    layer = cls(**config, kernel_quantizer=quantizer())
    model = model_of(layer, shape)
    plain = cls.__bases__[1](**config)
    reference = model_of(plain, shape)
    codes, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
    plain.set_weights([codes * scale, *([layer.bias] if layer.use_bias else [])])
    x = data(shape)
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), reference.predict(x, verbose=0)
    )


@cases
def test_quantized_layer_trains_and_reloads_exactly(cls, config, shape, tmp_path):
    model = model_of(cls(**config, kernel_quantizer=Ternary(sparsity=0.5)), shape)
    x = data(shape)
    y = np.zeros((4, *model.output_shape[1:]))
    model.compile("adam", "mse")
    losses = model.fit(x, y, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), restored.predict(x, verbose=0)
    )


def test_layer_without_quantizers_is_the_keras_layer():
    layer = layers.QuantDense(3)
    model = model_of(layer, (4,))
    np.testing.assert_array_equal(layer.kernel, layer.latent_kernel)
    assert model.count_params() == 4 * 3 + 3


def test_input_quantizer_is_applied():
    layer = layers.QuantDense(3, input_quantizer=Uniform(2))
    model_of(layer, (4,))
    x = data((4,))
    np.testing.assert_allclose(
        layer(x), layer.input_quantizer(x) @ layer.kernel + layer.bias, rtol=1e-6
    )


def test_codes_under_mixed_precision_follow_from_float32_weights():
    layer = layers.QuantDense(8, kernel_quantizer=Ternary(), dtype="mixed_bfloat16")
    model = model_of(layer, (64,))
    codes, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
    assert layer.kernel.dtype == "bfloat16"
    np.testing.assert_array_equal(np.sign(layer.kernel), codes)
    x = data((64,))
    expected = x @ (codes * scale)
    np.testing.assert_allclose(
        np.asarray(model(x), "float32"), expected, rtol=0.05, atol=0.1
    )


def test_one_quantizer_for_two_layers_is_refused():
    quantizer = Ternary()
    inputs = keras.Input((4,))
    x = layers.QuantDense(4, kernel_quantizer=quantizer)(inputs)
    with pytest.raises(ValueError, match="already serves another layer"):
        layers.QuantDense(4, kernel_quantizer=quantizer)(x)


@pytest.mark.parametrize("scheme", [tfc.Uniform(4), tfc.Decomposition(params="1/2")])
def test_lora_is_refused_by_layers_that_compute_their_kernel(scheme):
    inputs = keras.Input((12, 8))
    x = keras.layers.Conv1D(16, 3, name="convolution")(inputs)
    x = keras.layers.Flatten()(keras.layers.Dense(16, name="hidden")(x))
    model = keras.Model(inputs, keras.layers.Dense(4)(x))
    student = tfc.compress(model, scheme)
    compressed = [student]
    if isinstance(scheme, tfc.Uniform):
        compressed.append(tfc.finalize(student))
    for each in compressed:
        for name in ("convolution", "hidden"):
            with pytest.raises(ValueError, match=f"enable_lora.*'{name}'.*compress"):
                each.get_layer(name).enable_lora(2)


def test_wrong_arguments_of_quantized_layers_are_refused():
    with pytest.raises(
        TypeError, match="`kernel_quantizer` is a .*Received: 'ternary'"
    ):
        layers.QuantDense(4, kernel_quantizer="ternary")
    with pytest.raises(ValueError, match="lora_rank=2"):
        layers.QuantDense(4, lora_rank=2)
    with pytest.raises(AttributeError, match="Build the layer"):
        _ = layers.QuantDense(4).kernel


def test_channel_without_a_scale_in_float32_gets_codes_of_zero():
    norm = keras.layers.BatchNormalization()
    norm.build((None, 3))
    norm.gamma.assign([1.0, 1e-37, 0.0])
    norm.moving_variance.assign([1.0, 1e20, 1.0])
    norm.beta.assign([0.1, 0.2, 0.3])
    codes, scale = np.full((4, 3), 5, np.int8), np.full((1, 3), 0.01, np.float32)
    codes, scale, bias = fold(codes, scale, np.zeros(()), norm)
    assert (scale > 0).all() and scale.dtype == np.float32
    np.testing.assert_array_equal(codes, [[5, 0, 0]] * 4)
    np.testing.assert_allclose(bias, [0.1, 0.2, 0.3], rtol=1e-6)
