"""Batch normalization within factorized layers, against the plain pair of layers."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from tfcompress.layers import (
    FactorizedNorm,
    FactorizedNormConv1D,
    FactorizedNormConv2D,
    FactorizedNormDense,
)

PAIRS = [
    (kl.Conv2D, FactorizedNormConv2D, (6, 3), {"strides": 2}, (8, 8, 3)),
    (kl.Conv1D, FactorizedNormConv1D, (5, 3), {"padding": "causal"}, (9, 4)),
    (kl.Dense, FactorizedNormDense, (7,), {"activation": None}, (4,)),
]


@pytest.fixture(params=PAIRS, ids=lambda pair: pair[0].__name__)
def pair(request):
    """`(plain layer, its norm, both in one, inputs)`, with the same function."""
    plain_class, class_, args, kwargs, shape = request.param
    rng = np.random.default_rng(0)
    plain, norm = plain_class(*args, **kwargs), kl.BatchNormalization()
    both = class_(*args, **kwargs, kernel_rank=args[0])
    x = rng.normal(size=(16, *shape)).astype("float32")
    norm(plain(x))
    both.build(x.shape)
    for variable in (plain.bias, *norm.weights):
        variable.assign(rng.uniform(0.5, 2.0, variable.shape))
    both.set_kernel(keras.ops.convert_to_numpy(plain.kernel), "identity")
    both.absorb(norm, plain.bias)
    return plain, norm, both, x


@pytest.mark.parametrize("training", [False, True])
def test_factorized_norm_starts_as_the_layer_and_its_norm(pair, training):
    plain, norm, both, x = pair
    expected = norm(plain(x), training=training)
    np.testing.assert_allclose(both(x, training=training), expected, atol=2e-5)


def test_statistics_move_like_those_of_the_norm_after_the_layer(pair):
    plain, norm, both, x = pair
    norm(plain(x), training=True)
    both(x, training=True)
    inner = both.normalization
    np.testing.assert_allclose(inner.moving_mean + plain.bias, norm.moving_mean, 1e-5)
    np.testing.assert_allclose(inner.moving_variance, norm.moving_variance, 1e-5)


def test_factors_and_bias_give_the_outputs_of_inference(pair):
    plain, _, both, x = pair
    rng = np.random.default_rng(1)
    size = both.coefficients.shape
    both.coefficients.assign(rng.normal(size=size))
    both.rank_mask.assign(np.arange(size[0]) % 2)
    both.input_mask.assign(np.arange(x.shape[-1]) != 1)
    basis, coefficients, bias = both.factors()
    assert basis.shape[-1] == coefficients.shape[0] == size[0] // 2
    plain.kernel.assign(np.tensordot(basis, coefficients, axes=1))
    plain.bias.assign(bias)
    np.testing.assert_allclose(both(x), plain(x), atol=2e-5)
    np.testing.assert_allclose(both.kernel, plain.kernel, atol=1e-5)


def test_factorized_norm_saves_and_loads(pair, tmp_path):
    *_, both, x = pair
    inputs = keras.Input(x.shape[1:])
    copy = type(both).from_config(both.get_config())
    model = keras.Model(inputs, copy(inputs))
    copy.set_weights(both.get_weights())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    assert isinstance(loaded.layers[-1], FactorizedNorm)


def test_factorized_norm_normalises_axis_1_of_channels_first_inputs():
    layer = FactorizedNormConv2D(6, 3, data_format="channels_first")
    layer.build((None, 3, 8, 8))
    assert layer.normalization.axis == 1
    assert layer.normalization.moving_mean.shape == (6,)
