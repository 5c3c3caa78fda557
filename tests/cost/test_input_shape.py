"""Costs of models of free sizes, counted at a size."""

import keras
import pytest
from keras import layers as kl

import tfcompress as tfc
from tests.free_sizes import KINDS, free_model, shapes
from tfcompress.cost import layer_costs, total_cost


def macs_of(model, input_shape=None):
    costs = layer_costs(model, input_shape)
    return {cost.name: cost.macs for cost in costs if cost.macs != 0}


def two_inputs(*sizes):
    """Sum of the features of an image and of a sequence, in this order."""
    image = keras.Input((*sizes[:2], 3), name="image")
    text = keras.Input((*sizes[2:], 5), name="text")
    x = kl.GlobalMaxPooling2D()(kl.Conv2D(4, 3, name="a")(image))
    y = kl.GlobalMaxPooling1D()(kl.Conv1D(4, 3, name="b")(text))
    return keras.Model([image, text], kl.Add()([x, y]))


def shared():
    """One convolution on an image of two sizes, in a nested model."""
    conv = kl.Conv2D(4, 3, padding="same", name="conv")
    inner = keras.Sequential([keras.Input((None, None, 3)), conv], name="inner")
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, [inner(inputs), inner(kl.AveragePooling2D(2)(inputs))])


@pytest.mark.parametrize("kind", KINDS)
def test_costs_at_an_input_shape_are_those_of_a_model_of_that_size(kind):
    make, *sizes, _ = KINDS[kind]
    for size, shape in zip(sizes, shapes(kind), strict=True):
        assert macs_of(free_model(kind), shape) == macs_of(make(*size))
        assert total_cost(layer_costs(free_model(kind), shape)).macs > 0


@pytest.mark.parametrize(
    "input_shape",
    [
        [(9, 8, 3), (7, 5)],
        ((9, 8, 3), [7, 5]),
        {"text": (7, 5), "image": (9, 8, 3)},
    ],
)
def test_several_inputs_have_shapes_in_order_or_by_name(input_shape):
    found = macs_of(two_inputs(None, None, None), input_shape)
    assert found == {"a": 27 * 4 * 7 * 6, "b": 15 * 4 * 5}


def test_a_shared_layer_counts_each_call_at_its_size():
    expected = 27 * 4 * (8 * 8 + 4 * 4)
    assert macs_of(shared(), (8, 8, 3)) == {"inner/conv": expected}
    assert macs_of(shared()) == {"inner/conv": None}


def test_layers_of_known_size_are_counted_without_input_shape():
    x = inputs = keras.Input((None, None, 3))
    x = kl.Conv2D(4, 3, name="open")(x)
    x = kl.Conv2D(4, 3, name="resized")(kl.Resizing(8, 8)(x))
    x = kl.Dense(2, name="flat")(kl.Flatten()(x))
    costs = layer_costs(keras.Model(inputs, x))
    assert [cost.macs for cost in costs] == [None, 9 * 4 * 4 * 6 * 6, 6 * 6 * 4 * 2]
    assert [cost.open_size for cost in costs] == [True, False, False]
    total = total_cost(costs)
    assert total.macs is None and total.bops is None
    assert tfc.cost.float32_cost(total).bops is None


@pytest.mark.parametrize(
    "input_shape",
    [
        *[(None, 8, 8, 3), (8.0, 8, 3), (True, 8, 3), (0, 8, 3), "8x8", 8],
        *[[(8, 8, None)], {"image": 8}],
    ],
)
def test_an_input_shape_of_another_form_is_refused(input_shape):
    for use in (
        lambda: layer_costs(free_model("images"), input_shape),
        lambda: tfc.BitSharing("1/40", input_shape=input_shape),
        lambda: tfc.Decomposition("1/2", input_shape=input_shape),
    ):
        with pytest.raises(ValueError, match="`input_shape` is a tuple .*Received: "):
            use()


@pytest.mark.parametrize(
    "input_shape",
    [
        *[(8, 3), (1, 8, 8, 3), (8, 8, 1), (), [(8, 8, 3), (8, 8, 3)]],
        {"other": (8, 8, 3)},
    ],
)
def test_an_input_shape_of_another_model_is_refused(input_shape):
    message = r"sizes of the model's inputs.*\(None, None, 3\).*Received: input_shape="
    with pytest.raises(ValueError, match=message):
        layer_costs(free_model("images"), input_shape)


def test_an_input_shape_must_agree_with_known_sizes():
    make, size, _, _ = KINDS["images"]
    assert macs_of(make(*size), (16, 16, 3)) == macs_of(make(*size))
    with pytest.raises(ValueError, match=r"\(16, 16, 3\).*Received: input_shape=\(8"):
        macs_of(make(*size), (8, 8, 3))


def test_an_input_shape_that_a_layer_refuses_is_an_error():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, kl.Conv2D(4, 5, name="conv")(inputs))
    assert macs_of(model, (5, 6, 3)) == {"conv": 75 * 4 * 2}
    with pytest.raises(ValueError, match=r"input_shape=\(4, 6, 3\), with which Keras"):
        macs_of(model, (4, 6, 3))
