"""Residual networks with a dead branch, compared with the same without it."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.graph.dead_branches import remove_dead_branches


def residual_net(branch, add=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(inputs)
    x = layers.ReLU(name="relu")((add or layers.Add(name="sum"))(branch(x)))
    x = layers.Conv2D(7, 3, padding="same", name="next")(x)
    outputs = layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if variable.ndim == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def two_convolutions(x):
    y = layers.Conv2D(5, 3, padding="same", use_bias=False, name="conv1")(x)
    y = layers.ReLU()(layers.BatchNormalization(name="bn1")(y))
    y = layers.Conv2D(6, 1, name="conv2")(y)
    y = layers.BatchNormalization(name="bn2")(y)
    return [x, y]


def kill(model, *names):
    for name in names:
        layer = model.get_layer(name)
        weight = layer.gamma if hasattr(layer, "gamma") else layer.kernel
        weight.assign(np.zeros(weight.shape))
    return model


def check_same(model, smaller):
    x = np.random.default_rng(2).normal(size=(4, 8, 8, 3)).astype("float32")
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(smaller.predict(x, verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize("dead", ["conv1", "bn1", "conv2", "bn2"])
def test_dead_branch_becomes_a_rescaling_layer(dead):
    model = kill(residual_net(two_convolutions), dead)
    smaller = remove_dead_branches(model)
    kinds = [type(layer).__name__ for layer in smaller.layers]
    assert kinds == [
        *("InputLayer", "Conv2D", "Rescaling", "ReLU", "Conv2D"),
        *("GlobalAveragePooling2D", "Dense"),
    ]
    check_same(model, smaller)


def test_model_without_its_dead_branch_is_saved_and_exported(tmp_path):
    smaller = remove_dead_branches(kill(residual_net(two_convolutions), "bn2"))
    smaller.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    check_same(smaller, loaded)
    tfc.export(loaded, tmp_path / "small.tflite")


def test_dead_branch_of_zeros_leaves_no_layer():
    model = kill(residual_net(two_convolutions), "bn2")
    model.get_layer("bn2").beta.assign(np.zeros(6))
    smaller = remove_dead_branches(model)
    assert "Rescaling" not in [type(layer).__name__ for layer in smaller.layers]
    check_same(model, smaller)


def test_sum_of_three_keeps_its_live_summands():
    def three(x):
        return [*two_convolutions(x), layers.Conv2D(6, 1, name="side")(x)]

    model = kill(residual_net(three), "conv2", "side")
    assert "sum" not in [x.name for x in remove_dead_branches(model).layers]
    check_same(model, remove_dead_branches(model))
    model = kill(residual_net(three), "conv2")
    assert "sum" in [x.name for x in remove_dead_branches(model).layers]
    check_same(model, remove_dead_branches(model))


def padded_constant(x):
    y = layers.Conv2D(5, 1, name="conv1")(x)  # its bias stays
    return [x, layers.Conv2D(6, 3, padding="same", name="conv2")(y)]


def into_a_product(x):
    return two_convolutions(x)


@pytest.mark.parametrize(
    ("branch", "add", "dead"),
    [
        (two_convolutions, None, ()),
        (padded_constant, None, ("conv1",)),
        (into_a_product, layers.Multiply(), ("conv2",)),
        (into_a_product, layers.Concatenate(), ("conv2",)),
    ],
    ids=["no dead branch", "differs at the border", "product", "concatenation"],
)
def test_branch_that_is_no_constant_summand_stays(branch, add, dead):
    model = kill(residual_net(branch, add), *dead)
    assert remove_dead_branches(model) is model


def test_dead_branch_of_open_size_stays():
    inputs = keras.Input((None, None, 3))
    x = layers.Add()([inputs, layers.Conv2D(3, 1, name="conv")(inputs)])
    model = kill(keras.Model(inputs, x), "conv")
    assert remove_dead_branches(model) is model


def test_decomposition_finalizes_a_model_with_a_dead_branch():
    model = kill(residual_net(two_convolutions), "conv1")
    student = tfc.compress(model, tfc.Decomposition(macs="0.6"))
    check_same(model, student)
    student.compile(keras.optimizers.SGD(0.01), "mse")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8, 8, 3)).astype("float32")
    student.fit(x, rng.normal(size=(64, 2)), batch_size=8, epochs=4, verbose=0)
    small = tfc.finalize(student)
    check_same(student, small)
    assert small.count_params() < model.count_params()
