"""Recurrent layers, split into a dense layer and the steps."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.graph.parts.replacement import replace_by_parts
from tfcompress.layers import RecurrentSteps

KINDS = [layers.LSTM, layers.GRU, layers.SimpleRNN]
ARGUMENTS = [
    {},
    {"return_sequences": True, "go_backwards": True, "return_state": True},
    {"unroll": True, "use_bias": False},
    {"dropout": 0.3, "recurrent_dropout": 0.3},
    {"activation": "relu", "return_sequences": True, "zero_output_for_mask": True},
]
CASES = [(kind, arguments) for kind in KINDS for arguments in ARGUMENTS]
CASES += [
    (layers.GRU, {"reset_after": False}),
    (layers.GRU, {"reset_after": False, "use_bias": False, "dropout": 0.2}),
    (layers.LSTM, {"recurrent_activation": "hard_sigmoid", "unit_forget_bias": False}),
]


def with_random_weights(model):
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(0.4 * rng.normal(size=variable.shape))
    return model


def check_equal(model, inputs):
    split = replace_by_parts(model).model
    for _ in range(2):  # a stateful layer goes on from its last batch
        expected, found = (keras.tree.flatten(x(inputs)) for x in (model, split))
        for y, z in zip(expected, found, strict=True):
            np.testing.assert_allclose(z, y, atol=1e-6)
    assert any(isinstance(x, RecurrentSteps) for x in split.layers)
    return split


@pytest.mark.parametrize("kind, arguments", CASES)
def test_split_layer_computes_the_same_with_masks(kind, arguments):
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 5, mask_zero=True)(inputs)
    outputs = kind(4, name="steps", **arguments)(x)
    model = with_random_weights(keras.Model(inputs, outputs))
    words = np.random.default_rng(1).integers(20, size=(3, 6))
    words[0, 4:] = 0
    split = check_equal(model, words)
    assert split.count_params() == model.count_params()
    dense = split.get_layer("steps_input")
    assert dense.units == split.get_layer("steps").kernel.shape[1]


def test_split_layer_takes_initial_states():
    inputs, states = keras.Input((6, 3)), [keras.Input((4,)), keras.Input((4,))]
    outputs = layers.LSTM(4, return_state=True)(inputs, initial_state=states)
    model = with_random_weights(keras.Model([inputs, *states], outputs))
    rng = np.random.default_rng(0)
    check_equal(model, [rng.normal(size=(2, *x.shape[1:])) for x in model.inputs])


@pytest.mark.parametrize("kind", KINDS)
def test_split_layer_goes_on_from_its_state(kind):
    inputs = keras.Input(batch_shape=(2, 6, 3))
    model = with_random_weights(keras.Model(inputs, kind(4, stateful=True)(inputs)))
    x = np.random.default_rng(0).normal(size=(2, 6, 3))
    model(x)
    check_equal(model, x)


def test_layers_of_nested_models_are_split():
    inner = keras.Sequential(
        [keras.Input((6, 3)), layers.GRU(4, go_backwards=True)], name="inner"
    )
    inputs = keras.Input((6, 3))
    model = with_random_weights(keras.Model(inputs, layers.Dense(2)(inner(inputs))))
    split = replace_by_parts(model).model
    x = np.random.default_rng(0).normal(size=(2, 6, 3))
    np.testing.assert_allclose(split(x), model(x), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_dropped_in_all_steps_alike_in_training(kind):
    """Of inputs that are equal in all steps, and without a recurrence."""
    inputs = keras.Input((5, 64))
    layer = kind(8, dropout=0.5, return_sequences=True, use_bias=False)
    split = replace_by_parts(keras.Model(inputs, layer(inputs))).model
    dropped = split.layers[1](np.ones((2, 5, 64), "float32"), training=True)
    dropped = keras.ops.convert_to_numpy(dropped)
    assert set(np.unique(dropped)) == {0.0, 2.0}
    assert (dropped == dropped[:, :1]).all()


@pytest.mark.parametrize("arguments", [{}, {"reset_after": False}])
def test_states_are_dropped_in_training_alone(arguments):
    inputs = keras.Input((5, 3))
    layer = layers.GRU(8, recurrent_dropout=0.5, **arguments)
    split = replace_by_parts(
        with_random_weights(keras.Model(inputs, layer(inputs)))
    ).model
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("float32")
    inference, *training = (
        keras.ops.convert_to_numpy(split(x, training=t)) for t in (False, True, True)
    )
    assert np.abs(training[0] - training[1]).max() > 1e-3
    np.testing.assert_allclose(split(x), inference)


def test_steps_refuse_inputs_of_another_width():
    from tfcompress.layers import LSTMSteps

    with pytest.raises(ValueError, match="4 \\* units = 16 channels"):
        LSTMSteps(4)(np.zeros((2, 5, 12), "float32"))
