"""Costs of every kind of layer, with expected counts as arithmetic."""

import keras
import pytest
from keras import layers

from tfcompress.cost import layer_costs, total_cost
from tfcompress.layers import GRUSteps, LSTMSteps


def costs_of(layer, *shape):
    inputs = keras.Input(shape)
    return layer_costs(keras.Model(inputs, layer(inputs)))


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (layers.Conv1D(4, 3), (10, 2), 3 * 2 * 4 * (10 - 2)),
        (layers.Conv2D(4, 3, strides=2), (9, 7, 2), 3 * 3 * 2 * 4 * 4 * 3),
        (layers.Conv2D(4, (5, 1), padding="same"), (9, 7, 2), 5 * 2 * 4 * 9 * 7),
        (layers.Conv2D(4, 3, dilation_rate=2), (9, 7, 2), 3 * 3 * 2 * 4 * 5 * 3),
        (layers.Conv2D(6, 3, groups=2), (9, 7, 4), 3 * 3 * (4 // 2) * 6 * 7 * 5),
        (layers.Conv3D(4, 2), (4, 5, 6, 3), 2 * 2 * 2 * 3 * 4 * 3 * 4 * 5),
        (layers.DepthwiseConv1D(3), (10, 4), 3 * 4 * 8),
        (
            layers.DepthwiseConv2D(3, depth_multiplier=2),
            (9, 7, 4),
            3 * 3 * 4 * 2 * 7 * 5,
        ),
        (
            layers.SeparableConv2D(6, 3, depth_multiplier=2),
            (9, 7, 4),
            (3 * 3 * 4 * 2 + 4 * 2 * 6) * 7 * 5,
        ),
        (layers.Conv1DTranspose(4, 3, strides=2), (10, 2), 3 * 2 * 4 * 10),
        (layers.Conv2DTranspose(4, 3, strides=2), (9, 7, 2), 3 * 3 * 2 * 4 * 9 * 7),
        (layers.Dense(5), (3,), 3 * 5),
        (layers.Dense(5), (7, 2, 3), 3 * 5 * 7 * 2),
        (layers.EinsumDense("ab,bc->ac", 5), (3,), 3 * 5),
        (layers.EinsumDense("...x,xy->...y", 5), (7, 2, 3), 3 * 5 * 7 * 2),
        (
            layers.EinsumDense("abc,cde->abde", output_shape=(7, 4, 5)),
            (7, 3),
            3 * 4 * 5 * 7,
        ),
        (layers.LSTM(4), (7, 3), (3 + 4) * 16 * 7),
        (layers.GRU(4, return_sequences=True), (7, 3), (3 + 4) * 12 * 7),
        (layers.SimpleRNN(4, use_bias=False), (7, 3), (3 + 4) * 4 * 7),
        (LSTMSteps(4, return_state=True), (7, 16), 4 * 16 * 7),
        (GRUSteps(4, return_sequences=True), (7, 12), 4 * 12 * 7),
        (layers.Embedding(9, 4), (7,), 0),
        (layers.TimeDistributed(layers.Dense(5)), (7, 3), 3 * 5 * 7),
        (
            layers.TimeDistributed(layers.Conv2D(4, 3)),
            (6, 9, 7, 2),
            6 * 3 * 3 * 2 * 4 * 7 * 5,
        ),
        (
            layers.TimeDistributed(layers.TimeDistributed(layers.Conv1D(4, 3))),
            (6, 5, 10, 2),
            6 * 5 * 3 * 2 * 4 * 8,
        ),
    ],
)
def test_costs_of_layers_with_kernels(layer, shape, expected):
    cost = total_cost(costs_of(layer, *shape))
    assert cost.macs == expected
    assert cost.bops == expected * 32 * 32
    assert cost.params == layer.count_params()
    assert cost.bytes == cost.entropy_bytes == 4 * layer.count_params()


def test_reverse_embedding_multiplies_by_its_table_and_a_look_up_does_not():
    inputs = keras.Input((7,))
    layer = layers.ReversibleEmbedding(9, 4)
    model = keras.Model(inputs, layer(layer(inputs), reverse=True))
    (cost,) = layer_costs(model)
    assert (cost.macs, cost.params) == (9 * 4 * 7, 9 * 4)


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU, LSTMSteps])
def test_recurrent_layer_has_no_macs_for_an_open_length(kind):
    costs = costs_of(kind(4), None, 16)
    assert all(cost.macs is None and cost.open_size for cost in costs)


def test_channels_first_convolution_has_its_channels_and_macs():
    layer = layers.Conv2D(4, 3, padding="same", data_format="channels_first")
    (cost,) = costs_of(layer, 2, 9, 7)
    assert cost.macs == 3 * 3 * 2 * 4 * 9 * 7
    assert cost.channels == 4


@pytest.mark.parametrize(
    "layer",
    [
        layers.BatchNormalization(),
        layers.LayerNormalization(axis=(1, 2)),
        layers.PReLU(),
    ],
)
def test_elementwise_layer_has_parameters_but_no_operations(layer):
    (cost,) = costs_of(layer, 9, 7, 4)
    assert (cost.macs, cost.bops, cost.not_counted) == (0, 0, "")
    assert cost.params == layer.count_params()
    assert cost.channels == 4


@pytest.mark.parametrize(
    "layer", [layers.ReLU(), layers.MaxPooling2D(), layers.Flatten(), layers.Dropout(0)]
)
def test_layers_that_cost_nothing_do_not_appear(layer):
    assert costs_of(layer, 8, 8, 4) == []


class Unknown(keras.layers.Layer):
    def call(self, x):
        return x * x


@pytest.mark.parametrize(
    "layer",
    [
        layers.RNN(layers.LSTMCell(4)),
        layers.Lambda(lambda x: x, output_shape=(5, 3)),
        Unknown(),
    ],
)
def test_layers_without_a_formula_are_listed_as_not_counted(layer):
    (cost,) = costs_of(layer, 5, 3)
    assert cost.macs is None and cost.bops is None
    assert cost.not_counted == "no formula for its operations"
    assert cost.bytes == 4 * layer.count_params()


def test_products_without_weights_are_listed_as_not_counted():
    inputs = keras.Input((5, 3))
    product = keras.ops.matmul(inputs, keras.ops.transpose(inputs, (0, 2, 1)))
    (cost,) = layer_costs(keras.Model(inputs, product))
    assert cost.type == "Matmul" and cost.not_counted


def test_layers_of_unknown_output_size_are_listed_as_not_counted():
    (cost,) = costs_of(layers.Conv1D(4, 3), None, 2)
    assert cost.macs is None
    assert "leaves its output size (None,) open" in cost.not_counted
    assert cost.bytes == 4 * (3 * 2 * 4 + 4)
