"""Finalized models of factorized layers."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.layers import FactorizedConv1D, FactorizedConv2D, FactorizedDense


def cut(layer, ranks=(), inputs=()):
    """Masks some ranks and input channels."""
    for mask, indices in ((layer.rank_mask, ranks), (layer.input_mask, inputs)):
        values = np.ones(mask.shape, "float32")
        values[list(indices)] = 0
        mask.assign(values)


def randomize(model):
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            for variable in layer.weights:
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))


def chain():
    inputs = keras.Input((12, 12, 3))
    x = FactorizedConv2D(8, 3, strides=2, padding="same", name="a")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = FactorizedConv2D(10, 3, dilation_rate=2, activation="tanh", name="b")(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, FactorizedDense(4, activation="softmax", name="c")(x))


def test_factorized_layers_without_cuts_become_one_plain_layer_each():
    model = chain()
    randomize(model)
    plain = tfc.finalize(model)
    kinds = {x.name: type(x) for x in plain.layers}
    assert kinds["a"] is kinds["b"] is layers.Conv2D and kinds["c"] is layers.Dense
    assert "a_basis" not in kinds
    x = np.random.default_rng(1).normal(size=(2, 12, 12, 3)).astype("float32")
    np.testing.assert_allclose(plain(x), model(x), atol=1e-5)


def test_cut_ranks_make_two_layers_and_cut_channels_are_removed():
    model = chain()
    randomize(model)
    cut(model.get_layer("b"), ranks=range(3, 10), inputs=(1, 4, 5))
    # Of the 2 x 2 positions that are flattened, channels 0 and 7.
    flat = [10 * position + channel for position in range(4) for channel in (0, 7)]
    cut(model.get_layer("c"), inputs=flat)
    plain = tfc.finalize(model)
    x = np.random.default_rng(1).normal(size=(2, 12, 12, 3)).astype("float32")
    np.testing.assert_allclose(plain(x), model(x), atol=1e-5)
    shapes = {
        x.name: tuple(x.kernel.shape) for x in plain.layers if hasattr(x, "kernel")
    }
    assert shapes == {
        "a": (3, 3, 3, 5),
        "b_basis": (3, 3, 5, 3),
        "b": (1, 1, 3, 8),
        "c": (4 * 8, 4),
    }
    basis, coefficients = plain.get_layer("b_basis"), plain.get_layer("b")
    assert basis.dilation_rate == (2, 2) and coefficients.dilation_rate == (1, 1)
    assert not basis.use_bias and basis.activation is keras.activations.linear
    assert coefficients.activation is keras.activations.tanh
    assert plain.get_layer("norm").gamma.shape == (5,)


def test_conv1d_and_dense_with_cut_ranks_become_two_layers():
    inputs = keras.Input((9, 4))
    x = FactorizedConv1D(6, 3, padding="causal", name="conv")(inputs)
    model = keras.Model(inputs, FactorizedDense(5, use_bias=False, name="dense")(x))
    cut(model.get_layer("conv"), ranks=(0, 2))
    cut(model.get_layer("dense"), ranks=(1, 3, 4))
    plain = tfc.finalize(model)
    names = {x.name for x in plain.layers}
    assert {"conv_basis", "conv", "dense_basis", "dense"} <= names
    x = np.random.default_rng(1).normal(size=(2, 9, 4)).astype("float32")
    np.testing.assert_allclose(plain(x), model(x), atol=1e-5)


def test_added_channels_are_removed_only_if_all_readers_cut_them():
    inputs = keras.Input((8, 8, 3))
    x = FactorizedConv2D(6, 3, padding="same", name="stem")(inputs)
    y = FactorizedConv2D(6, 3, padding="same", name="branch")(x)
    x = layers.Add()([x, y])
    outputs = [FactorizedConv2D(2, 1, name=name)(x) for name in ("left", "right")]
    model = keras.Model(inputs, outputs)
    cut(model.get_layer("branch"), inputs=(0, 1))
    cut(model.get_layer("left"), inputs=(0, 1))
    cut(model.get_layer("right"), inputs=(1, 2))
    plain = tfc.finalize(model)
    assert plain.get_layer("stem").filters == plain.get_layer("branch").filters == 5
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype("float32")
    for received, expected in zip(plain(x), model(x), strict=True):
        np.testing.assert_allclose(received, expected, atol=1e-5)


def test_finalize_refuses_factors_that_are_not_finite():
    model = chain()
    model.get_layer("b").coefficients.assign(np.full((10, 10), np.nan))
    with pytest.raises(ValueError, match="finite.*diverged"):
        tfc.finalize(model)
