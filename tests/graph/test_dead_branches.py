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


def masked_net(branch, live=None):
    """A sum of masked steps, of which `branch` has the dead layer "dead"."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True)(inputs)
    start = keras.Input((7, 8))  # a nested model hides masks from symbolic tensors
    x = keras.Model(start, layers.Dense(8, name="stem")(start))(x)
    x = layers.Add(name="sum")([live(x) if live else x, branch(x)])
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    dead = model.get_layer("dead")
    dead.kernel.assign(np.zeros(dead.kernel.shape))
    dead.bias.assign(np.linspace(-1, 1, 8))
    return model


def recurrent(x):
    """A constant before the LSTM, which takes as many steps as the mask says."""
    x = layers.LSTM(8)(layers.Dense(8, name="dead")(x))
    return layers.RepeatVector(7)(x)


@pytest.mark.filterwarnings("ignore:.*destroy the mask")
@pytest.mark.parametrize(
    "branch, live, is_removed",
    [
        (layers.Dense(8, name="dead"), None, True),
        # It loses the mask, and so does the sum.
        (layers.Conv1D(8, 3, padding="same", name="dead"), None, False),
        (recurrent, layers.Conv1D(8, 3, padding="same"), False),
    ],
    ids=["dense", "convolution", "recurrent"],
)
def test_dead_branch_is_removed_where_the_mask_of_the_sum_stays(
    branch, live, is_removed
):
    model = masked_net(branch, live)
    smaller = remove_dead_branches(model)
    names = [layer.name for layer in smaller.layers]
    assert ("dead" not in names) == is_removed
    ids = np.random.default_rng(0).integers(1, 20, (4, 7))
    ids[:, 4:] = 0
    ids[0, 2:] = 0
    np.testing.assert_allclose(smaller(ids), model(ids), atol=1e-5)


@pytest.mark.parametrize("summands", [1, 2])
def test_sum_that_is_an_output_keeps_its_name(summands):
    inputs = keras.Input((4,))
    dead = layers.Dense(4, kernel_initializer="zeros", bias_initializer="ones")
    live = [layers.Dense(4)(inputs) for _ in range(summands)]
    model = keras.Model(inputs, layers.Add(name="score")([*live, dead(inputs)]))
    smaller = remove_dead_branches(model)
    assert len(smaller.layers) < len(model.layers) + 1
    assert smaller.output_names == ["score"]
    x = np.ones((2, 4), "float32")
    np.testing.assert_allclose(smaller(x), model(x), atol=1e-6)
