"""Convolutional recurrent layers, split into a convolution and the steps."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests.graph.parts.replaced import normal, replaced_alike
from tfcompress.cost.layer_costs import layer_costs
from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph
from tfcompress.layers import ConvLSTMSteps

KINDS = {1: layers.ConvLSTM1D, 2: layers.ConvLSTM2D, 3: layers.ConvLSTM3D}
ALL = {"return_sequences": True, "go_backwards": True, "return_state": True}
ARGUMENTS = [
    {},
    {"padding": "same", "strides": 2, **ALL},
    {"dilation_rate": 2, "use_bias": False, "unroll": True},
    {"dropout": 0.3, "recurrent_dropout": 0.3, "activation": "relu"},
    {"recurrent_activation": "hard_sigmoid", "unit_forget_bias": False},
    {"dtype": "mixed_float16"},
]
CASES = [(2, arguments) for arguments in ARGUMENTS]
CASES += [(1, ARGUMENTS[0]), (1, ARGUMENTS[1]), (3, {"padding": "same"})]


def sizes(rank, steps=4):
    return (steps, *(7, 6, 5)[:rank], 2)


def net(rank, *, shape=None, **arguments):
    inputs = keras.Input(shape or sizes(rank))
    layer = KINDS[rank](3, (3, 2, 3)[:rank], name="steps", **arguments)
    return keras.Model(inputs, layer(inputs))


@pytest.mark.parametrize("rank, arguments", CASES)
def test_split_layer_computes_the_same(rank, arguments):
    model = net(rank, **arguments)
    replaced = replaced_alike(model, normal(2, *sizes(rank)))
    assert not replaced.reasons
    steps = replaced.model.get_layer("steps")
    convolution = replaced.model.get_layer("steps_input")
    assert isinstance(steps, ConvLSTMSteps)
    assert convolution.filters == steps.kernel.shape[-1] == 12
    assert replaced.model.count_params() == model.count_params()
    shapes = [[x.shape for x in m.outputs] for m in (model, replaced.model)]
    assert shapes[0] == shapes[1]
    assert set(replaced.whole_of.values()) == {"steps"}


def test_split_layer_takes_sequences_of_any_length():
    model = net(1, shape=sizes(1, None), return_sequences=True)
    replaced_alike(model, normal(2, *sizes(1, 5)))


def test_split_layer_takes_initial_states():
    inputs, states = keras.Input((4, 6, 2)), [keras.Input((6, 3)), keras.Input((6, 3))]
    layer = layers.ConvLSTM1D(3, 3, padding="same", return_state=True)
    model = keras.Model([inputs, *states], layer(inputs, initial_state=states))
    replaced_alike(model, *(normal(2, *x.shape[1:]) for x in model.inputs))


def test_split_layer_goes_on_from_its_state():
    inputs = keras.Input(batch_shape=(2, 4, 6, 2))
    model = keras.Model(inputs, layers.ConvLSTM1D(3, 3, stateful=True)(inputs))
    x = normal(2, 4, 6, 2)
    model(x)
    replaced = replaced_alike(model, x)
    np.testing.assert_allclose(replaced.model(x), model(x), atol=1e-5)
    student = tfc.compress(model, tfc.Uniform(8))
    student.compile("adam", "mse")
    student.fit(x, np.zeros((2, 4, 3)), batch_size=2, epochs=2, verbose=0)


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="Keras raises an error for a mask"
)
@pytest.mark.parametrize("zeros", [False, True])
def test_split_layers_read_masks(zeros):
    """Of an argument, which the first layer passes on."""
    inputs, mask = keras.Input((4, 6, 2)), keras.Input((4,), dtype="bool")
    first = layers.ConvLSTM1D(3, 3, return_sequences=True, zero_output_for_mask=zeros)
    outputs = layers.ConvLSTM1D(3, 2, dropout=0.1)(first(inputs, mask=mask))
    model = keras.Model([inputs, mask], outputs)
    steps = np.array([[True] * 4, [True, True, False, False], [False, True] * 2])
    x = normal(3, 4, 6, 2)
    replaced_alike(model, x, steps)
    assert np.abs(model([x, steps]) - model([x, steps | True])).max() > 1e-3


@pytest.mark.parametrize(
    "make, names",
    [
        (layers.Bidirectional, {"x/forward_steps", "x/backward_steps"}),
        (layers.TimeDistributed, {"x/steps"}),
    ],
)
def test_layers_inside_of_others_are_split(make, names):
    shape = (3, 4, 6, 2) if make is layers.TimeDistributed else (4, 6, 2)
    inputs = keras.Input(shape)
    layer = make(layers.ConvLSTM1D(3, 3, name="steps"), name="x")
    replaced = replaced_alike(keras.Model(inputs, layer(inputs)), normal(2, *shape))
    assert set(replaced.whole_of.values()) == names and not replaced.reasons


def test_channels_that_the_layer_reads_and_makes_are_kept():
    inputs = keras.Input(sizes(2))
    x = layers.TimeDistributed(layers.Conv2D(4, 2, name="before"), name="x")(inputs)
    x = layers.ConvLSTM2D(3, 3, name="steps")(x)
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="after")(x))
    replaced = replaced_alike(model, normal(2, *sizes(2)))
    channels = Channels(Graph(replaced.model))
    removable = channels.removable()
    assert all(removable[channels.written["x/before"]])  # the convolution reads them
    assert not any(removable[channels.written["steps_input"]])
    assert not any(removable[channels.read["after"]])


def test_shared_layer_stays_shared():
    inputs = keras.Input((4, 6, 2))
    layer = layers.ConvLSTM1D(2, 3, padding="same", return_sequences=True, name="x")
    model = keras.Model(inputs, layer(layer(inputs)))
    replaced = replaced_alike(model, normal(2, 4, 6, 2))
    assert replaced.model.count_params() == model.count_params()


def test_channels_first_stay_whole_with_the_reason():
    inputs = keras.Input((4, 2, 6, 6))
    layer = layers.ConvLSTM2D(3, 3, data_format="channels_first", name="steps")
    plan = tfc.plan(keras.Model(inputs, layer(inputs)), tfc.Uniform(4))
    (row,) = [row for row in plan.rows if row.name == "steps"]
    assert "channels_first" in row.reason


def test_values_are_dropped_in_all_steps_alike_in_training():
    inputs = keras.Input((5, 8, 16))
    layer = layers.ConvLSTM1D(2, 3, dropout=0.5)
    split = replaced_alike(
        keras.Model(inputs, layer(inputs)), normal(2, 5, 8, 16)
    ).model
    x = split.layers[1](np.ones((2, 5, 8, 16), "float32"), training=True)
    x = keras.ops.convert_to_numpy(x)
    assert set(np.unique(x)) == {0.0, 2.0}
    assert (x == x[:, :1]).all() and (x != x[:, :, :1]).any()


def test_states_are_dropped_in_training_alone():
    model = replaced_alike(net(1, recurrent_dropout=0.5), normal(2, *sizes(1))).model
    x = normal(4, *sizes(1))
    inference, *training = (
        keras.ops.convert_to_numpy(model(x, training=t)) for t in (False, True, True)
    )
    assert np.abs(training[0] - training[1]).max() > 1e-3
    np.testing.assert_allclose(model(x), inference)


@pytest.mark.parametrize("rank", KINDS)
def test_products_are_counted_at_every_step_and_position(rank):
    kernel = (3, 2, 3)[:rank]
    costs = layer_costs(net(rank, padding="same"))
    positions = int(np.prod(sizes(rank)[:-1]))
    assert [cost.macs for cost in costs] == [
        positions * int(np.prod(kernel)) * channels * 12 for channels in (2, 3)
    ]


def test_steps_refuse_positions_of_unknown_size():
    with pytest.raises(ValueError, match="known sizes"):
        ConvLSTMSteps(3, (3,)).build((None, 4, None, 12))
