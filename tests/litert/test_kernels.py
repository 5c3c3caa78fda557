"""Recognition of planned kernels in constants."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from tfcompress import layers, quantizers
from tfcompress.litert.kernels import (
    FIRST_WEIGHTS,
    Kernel,
    Match,
    match,
    packed_kernels,
)


@pytest.fixture
def kernel():
    codes = np.array([[1, 0, -1], [0, 0, 1], [1, 0, 1], [-1, 0, 0]], np.int8)
    return Kernel("conv", codes, np.array([0.5, 0.25, 0.1], np.float32), 2)


def test_match_finds_channels_on_the_first_and_the_last_axis(kernel):
    columns = kernel.codes * kernel.scale
    first = match(columns.T.reshape(3, 2, 2, 1), kernel)
    last = match(columns.reshape(1, 2, 2, 3), kernel)
    assert (first.axis, last.axis) == (0, 3)
    assert not first.folded and not last.folded
    np.testing.assert_array_equal(first.codes.reshape(3, 4).T, kernel.codes)
    np.testing.assert_array_equal(last.codes.reshape(4, 3), kernel.codes)


def test_match_puts_a_folded_factor_into_scale_and_sign(kernel):
    factor = np.array([3.0, 2.0, -0.3], np.float32)
    found = match((kernel.codes * kernel.scale * factor).T, kernel)
    assert found.folded
    # The second channel is zero, so that its factor is unknown.
    np.testing.assert_allclose(found.scale, [1.5, 0.25, 0.03], rtol=1e-6)
    np.testing.assert_array_equal(found.codes.T, kernel.codes * [1, 1, -1])


def test_match_zeroes_the_codes_of_a_channel_with_a_folded_zero(kernel):
    found = match((kernel.codes * kernel.scale * [0, 1, 1]).T, kernel)
    np.testing.assert_array_equal(found.codes.T, kernel.codes * [0, 1, 1])
    assert (found.scale > 0).all()


def test_match_tolerates_rounding_of_folds_but_no_wrong_code():
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (50, 8)).astype(np.int8)
    kernel = Kernel("conv", codes, rng.uniform(0.1, 1, 8).astype(np.float32), 8)
    values = (codes * kernel.scale).astype(np.float32)
    for factor in rng.normal(size=(3, 8)).astype(np.float32):
        values = values * factor
    assert match(values, kernel).folded
    values[7, 3] *= 1.001  # neighboring codes differ by 1 in 127 at least
    assert match(values, kernel) is None


def long_kernel():
    codes: np.ndarray = np.zeros((5 * FIRST_WEIGHTS, 3), np.int8)
    codes[:, 0] = np.resize([1, 0, -1], len(codes))
    codes[-3:, 1] = [1, -1, 1]  # the first weights of this channel are zero
    return Kernel("conv", codes, np.array([0.5, 0.25, 0.1], np.float32), 2)


@pytest.mark.parametrize("factor", [[1, 1, 1], [3, -0.3, 2], [0, 0.7, 1]])
def test_match_finds_kernels_of_more_weights_than_are_compared_first(factor):
    kernel = long_kernel()
    values = kernel.codes * kernel.scale * np.array(factor, np.float32)
    for axis, constant in ((0, values.T), (1, values)):
        found = match(constant, kernel)
        codes = found.codes.T if axis == 0 else found.codes
        np.testing.assert_array_equal(codes, kernel.codes * np.sign(factor))


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("weight", [0, FIRST_WEIGHTS, 5 * FIRST_WEIGHTS - 1])
def test_match_refuses_a_kernel_with_one_other_weight(weight, channel):
    kernel = long_kernel()
    values = kernel.codes * kernel.scale
    values[weight, channel] += 0.01
    assert match(values, kernel) is None
    assert match(values.T, kernel) is None


@pytest.mark.parametrize("shape", [(3, 3), (4, 4, 3), (12,), (2, 6)])
def test_match_refuses_other_shapes(kernel, shape):
    assert match(np.ones(shape, np.float32), kernel) is None


@pytest.mark.parametrize(
    ("codes", "bits"),
    [([0], 2), ([-2, 1], 2), ([2], 4), ([-3], 4), ([-8, 7], 4), ([8], 8), ([-9], 8)],
)
def test_bits_of_codes_are_those_of_the_smallest_container(kernel, codes, bits):
    found = match(kernel.codes * kernel.scale, kernel)
    found = replace(found, codes=np.array(codes, np.int8))
    assert found.bits_of_codes() == bits


def test_in_container_keeps_codes_in_the_order_of_rows():
    codes = np.arange(24, dtype=np.int8).reshape(2, 2, 2, 3)
    found = Match(
        Kernel("a", codes.reshape(2, 12).T, np.ones(2), 8), 0, codes, 1, False
    )
    received = found.in_container(4, as_matrix=True)
    assert received.kernel.bits == 4
    np.testing.assert_array_equal(received.codes, codes.reshape(2, 12))


def test_packed_kernels_name_nested_layers_by_their_path():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.PackedDense(3, kernel_bits=5, name="dense")],
        name="inner",
    )
    inputs = keras.Input((4,))
    x = layers.PackedDense(4, kernel_bits=2, name="dense")(inputs)
    kernels = packed_kernels(keras.Model(inputs, inner(inner(x)[:, :1] + x)))
    assert [(k.layer, k.bits, k.codes.shape) for k in kernels] == [
        ("dense", 2, (4, 4)),
        ("inner/dense", 8, (4, 3)),
    ]


def test_packed_kernels_have_input_times_multiplier_depthwise_channels():
    layer = layers.PackedDepthwiseConv2D(3, depth_multiplier=2, kernel_bits=2)
    model = keras.Sequential([keras.Input((8, 8, 5)), layer])
    (kernel,) = packed_kernels(model)
    assert kernel.codes.shape == (3 * 3, 5 * 2)
    assert kernel.scale.shape == (5 * 2,)


def test_packed_kernels_of_plain_models_are_none():
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    assert packed_kernels(plain) == []


@pytest.mark.parametrize(
    "layer",
    [
        layers.QuantDense(2, kernel_quantizer=quantizers.Ternary(), name="training"),
        layers.FactorizedDense(2, name="training"),
    ],
)
def test_packed_kernels_refuse_layers_in_training(layer):
    student = keras.Sequential([keras.Input((4,)), layer])
    message = "1 layers that are still in training, the first 'training'.*finalize"
    with pytest.raises(ValueError, match=message):
        packed_kernels(student)


@pytest.mark.parametrize("model", [keras.Sequential(), "model.keras", None])
def test_packed_kernels_refuse_models_without_a_graph(model):
    with pytest.raises(ValueError, match="Functional or Sequential"):
        packed_kernels(model)
