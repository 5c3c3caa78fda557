import math

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.cost import float32_cost, layer_costs, total_cost
from tfcompress.layers import (
    PackedConv2D,
    PackedDense,
    PackedDepthwiseConv2D,
    QuantConv2D,
    QuantDense,
    QuantDepthwiseConv2D,
)
from tfcompress.quantizers import Ternary, Uniform, UniformActivation


def one_layer(layer, *shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


def test_cost_of_a_quantized_convolution():
    layer = QuantConv2D(
        5,
        3,
        padding="same",
        kernel_quantizer=Ternary(),
        input_quantizer=Uniform(8),
        name="conv",
    )
    (cost,) = layer_costs(one_layer(layer, 8, 6, 3))
    weights = 3 * 3 * 3 * 5
    codes, _ = layer.kernel_quantizer.encode(layer.latent_kernel)
    nonzeros = np.count_nonzero(codes)
    assert (cost.name, cost.type) == ("conv", "QuantConv2D")
    assert cost.kernel_shape == (3, 3, 3, 5)
    assert cost.channels == 5
    assert (cost.weight_bits, cost.container_bits, cost.activation_bits) == (2, 2, 8)
    assert 0 < nonzeros < weights
    assert cost.sparsity == pytest.approx(1 - nonzeros / weights)
    assert (cost.weights, cost.params) == (weights, weights + 5)
    assert cost.macs == weights * 8 * 6
    assert cost.bops == weights * 8 * 6 * 2 * 8
    assert cost.bytes == math.ceil(weights * 2 / 8) + 4 * 5 + 4 * 5
    assert cost.value_bits == 1 * nonzeros


@pytest.mark.parametrize("bits, container", [(2, 2), (3, 4), (4, 4), (5, 8), (8, 8)])
def test_quantized_kernel_takes_the_bytes_of_its_container(bits, container):
    layer = QuantDepthwiseConv2D(3, use_bias=False, kernel_quantizer=Uniform(bits))
    (cost,) = layer_costs(one_layer(layer, 8, 6, 5))
    assert (cost.weight_bits, cost.container_bits) == (bits, container)
    assert cost.bytes == math.ceil(3 * 3 * 5 * container / 8) + 4 * 5


CODES = np.array([[1, 0, 0, -1], [0, 0, 1, 0], [0, 0, 0, 0]])


def packed_dense():
    layer = PackedDense(4, kernel_bits=2)
    model = one_layer(layer, 3)
    layer.set_kernel(CODES, np.full((1, 4), 0.5))
    return model


def test_cost_of_a_packed_dense_layer():
    (cost,) = layer_costs(packed_dense())
    nonzeros, weights = 3, 12
    zeros = weights - nonzeros
    entropy = 2 * math.log2(12 / 2) + math.log2(12) + zeros * math.log2(12 / zeros)
    assert cost.type == "PackedDense"
    assert cost.params == weights + 4
    assert cost.sparsity == zeros / weights
    assert cost.value_bits == 1 * nonzeros
    assert cost.bytes == 3 + 4 * 4 + 4 * 4
    assert cost.entropy_bytes == math.ceil(entropy / 8) + 4 * 4 + 4 * 4


def test_packed_layer_costs_what_its_student_costs():
    student = QuantConv2D(4, 3, groups=2, kernel_quantizer=Uniform(3), name="c")
    packed = PackedConv2D(4, 3, groups=2, kernel_bits=3, name="c")
    models = [one_layer(layer, 8, 6, 4) for layer in (student, packed)]
    packed.set_kernel(*student.kernel_quantizer.encode(student.latent_kernel))
    expected, cost = (vars(layer_costs(model)[0]) for model in models)
    assert {**cost, "type": ""} == {**expected, "type": ""}


def test_layers_with_quantized_inputs_cost_the_same_after_finalize():
    inputs = keras.Input((8, 6, 4))
    x = inputs
    for name, bits in (("first", 8), ("second", 2)):
        x = QuantConv2D(
            4,
            3,
            padding="same",
            kernel_quantizer=Uniform(3),
            input_quantizer=UniformActivation(bits),
            name=name,
        )(x)
    x = layers.Flatten()(x)
    student = keras.Model(inputs, QuantDense(5, kernel_quantizer=Uniform(4))(x))
    before, after = (layer_costs(model) for model in (student, tfc.finalize(student)))
    assert [cost.activation_bits for cost in after] == [8, 2, 32]
    # The row of a layer contains the scale of its input.
    weights = 3 * 3 * 4 * 4
    assert after[1].bops == weights * 8 * 6 * 3 * 2
    assert after[1].bytes == weights * 4 // 8 + 4 * 4 + 4 * 4 + 4
    assert after[2].bytes == (8 * 6 * 4 * 5) * 4 // 8 + 4 * 5 + 4 * 5
    for expected, cost in zip(before, after, strict=True):
        assert {**vars(cost), "type": ""} == {**vars(expected), "type": ""}


def test_packed_depthwise_has_a_scale_per_output_channel():
    layer = PackedDepthwiseConv2D(3, depth_multiplier=2, kernel_bits=4, use_bias=False)
    (cost,) = layer_costs(one_layer(layer, 8, 8, 3))
    assert cost.bytes == (3 * 3 * 3 * 2) // 2 + 4 * (3 * 2)
    assert cost.macs == (3 * 3 * 3 * 2) * 6 * 6


def test_shared_layer_counts_operations_per_call_and_bytes_once():
    first, second = keras.Input((4,)), keras.Input((6, 4))
    shared = layers.Dense(3)
    model = keras.Model([first, second], [shared(first), shared(second)])
    (cost,) = layer_costs(model)
    assert cost.macs == 4 * 3 * (1 + 6)
    assert cost.params == 4 * 3 + 3
    assert cost.bytes == 4 * (4 * 3 + 3)


def test_nested_model_is_counted_with_the_shape_of_its_call():
    inner_input = keras.Input((None, None, 3))
    inner = keras.Model(
        inner_input, layers.Conv2D(5, 3, name="conv")(inner_input), name="inner"
    )
    outer = keras.Sequential([keras.Input((10, 12, 3)), inner])
    (cost,) = layer_costs(outer)
    assert cost.name == "inner/conv"
    assert cost.macs == 3 * 3 * 3 * 5 * 8 * 10


def test_nested_model_called_twice_counts_its_operations_twice():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4)], name="inner")
    inputs = keras.Input((4,))
    (cost,) = layer_costs(keras.Model(inputs, inner(inner(inputs))))
    assert cost.macs == 2 * (4 * 4)
    assert cost.params == 4 * 4 + 4


def test_model_without_a_graph_is_refused():
    with pytest.raises(ValueError, match="built Functional or Sequential.*Received"):
        layer_costs(keras.Sequential([layers.Dense(3)]))


def test_cost_of_a_float_kernel_with_quantized_input():
    layer = QuantConv2D(4, 1, input_quantizer=Uniform(4))
    (cost,) = layer_costs(one_layer(layer, 2, 2, 3))
    assert (cost.weight_bits, cost.container_bits, cost.activation_bits) == (32, 32, 4)
    assert cost.bops == 3 * 4 * 2 * 2 * 32 * 4
    assert cost.value_bits == 3 * 4 * 32


@pytest.mark.parametrize("dtype, size", [("float16", 2), ("mixed_bfloat16", 4)])
def test_float_parameters_cost_the_size_of_their_type(dtype, size):
    (cost,) = layer_costs(one_layer(layers.Dense(3, dtype=dtype), 4))
    assert cost.bytes == size * (4 * 3 + 3)
    assert cost.weight_bits == 8 * size


def test_total_cost_sums_layers_and_lists_those_not_counted():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=False)(inputs)
    x = layers.BatchNormalization()(x)
    lstm = layers.RNN(layers.LSTMCell(2), name="lstm")
    x = lstm(layers.Reshape((36, 4))(x))
    model = keras.Model(inputs, x)
    total = total_cost(layer_costs(model))
    weights = 3 * 3 * 3 * 4 + 4 * 4 + lstm.count_params()
    assert total.params == model.count_params() == weights
    assert total.bytes == total.entropy_bytes == 4 * total.params
    assert total.macs == 3 * 3 * 3 * 4 * 6 * 6
    assert total.bops == total.macs * 1024
    assert [cost.name for cost in total.not_counted] == ["lstm"]


def test_float32_cost_of_a_packed_model():
    cost = float32_cost(total_cost(layer_costs(packed_dense())))
    weights = 3 * 4
    assert cost.bops == weights * 32 * 32
    assert cost.bytes == cost.entropy_bytes == 4 * (weights + 4)
    assert cost.value_bits == 32 * weights
