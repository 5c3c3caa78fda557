"""Factorized layers that compute as their int8 operators do."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfcompress as tfc
from tfcompress.layers import (
    FactorizedConv1D,
    FactorizedConv2D,
    FactorizedDense,
    FactorizedNormConv2D,
    FactorizedNormDense,
    PackedKernel,
    QuantizeActivation,
)
from tfcompress.quantizers import Uniform

KINDS = {
    "conv2d": (
        lambda **kw: FactorizedConv2D(8, 3, strides=2, padding="same", **kw),
        (9, 9, 5),
    ),
    "conv1d": (
        lambda **kw: FactorizedConv1D(8, 3, padding="causal", activation="relu", **kw),
        (9, 5),
    ),
    "1x1": (lambda **kw: FactorizedConv2D(8, 1, use_bias=False, **kw), (4, 4, 12)),
    "dense": (lambda **kw: FactorizedDense(8, **kw), (12,)),
    "between": (
        lambda **kw: FactorizedNormConv2D(8, 3, kernel_rank=8, **kw),
        (9, 9, 5),
    ),
    "between, dense": (lambda **kw: FactorizedNormDense(8, kernel_rank=8, **kw), (12,)),
}


@pytest.fixture(params=KINDS)
def case(request):
    """A model of one int8 layer, the layer, and inputs."""
    keras.utils.set_random_seed(0)
    make, shape = KINDS[request.param]
    inputs = keras.Input(shape)
    layer = make(int8=True, name="layer")
    model = keras.Model(inputs, layer(inputs))
    if layer.use_bias:
        layer.bias.assign(np.linspace(-1, 1, 8))
    if layer.norms_hidden:
        norm, rng = layer.normalization, np.random.default_rng(1)
        norm.moving_mean.assign(rng.normal(size=8))
        norm.moving_variance.assign(rng.uniform(0.5, 2, 8))
    x = np.random.default_rng(0).normal(size=(16, *shape)).astype("float32")
    return model, layer, x


def masked(layer, ranks=8):
    layer.rank_mask.assign((np.arange(layer.rank_mask.shape[0]) < ranks) * 1.0)
    hidden = 4.0 if layer.norms_hidden else 8.0
    layer.hidden_quantizer.clip.assign(hidden)


def rounded(kernel):
    return np.array(Uniform(8)(kernel))


def test_layer_computes_in_float_until_the_masks_are_final(case):
    model, layer, x = case
    config = layer.get_config()
    assert config.pop("int8")
    plain = type(layer).from_config(config)
    plain.build(x.shape)
    for old, new in zip(layer.weights, plain.weights, strict=False):
        if old.name == new.name:
            new.assign(np.array(old))
    if layer.norms_hidden:
        for old, new in zip(
            layer.normalization.weights, plain.normalization.weights, strict=True
        ):
            new.assign(np.array(old))
    masked(layer, 3)
    plain.rank_mask.assign(np.array(layer.rank_mask))
    np.testing.assert_allclose(model(x), plain(x), atol=1e-5)
    masked(layer)
    layer.frozen.assign(1.0)
    assert np.abs(np.array(model(x)) - np.array(plain(x))).max() > 1e-4


def test_whole_kernel_is_rounded_once(case):
    model, layer, x = case
    before = np.array(layer.kernel)
    layer.frozen.assign(1.0)
    np.testing.assert_array_equal(layer.kernel, rounded(before))


def test_both_factors_and_the_tensor_between_are_rounded(case):
    model, layer, x = case
    masked(layer, 3)
    layer.frozen.assign(1.0)
    basis, coefficients = map(np.array, layer.masked_factors())
    float_layer = type(layer).from_config({**layer.get_config(), "int8": False})
    float_layer.build(x.shape)
    float_layer.kernel_variable.assign(rounded(basis))
    if layer.norms_hidden:
        for old, new in zip(
            layer.normalization.weights, float_layer.normalization.weights, strict=True
        ):
            new.assign(np.array(old))
    hidden = np.array(layer.hidden_quantizer(float_layer.hidden(x)))
    assert len(np.unique(hidden)) <= 256
    expected = hidden @ rounded(coefficients)
    if layer.use_bias:
        expected = expected + np.array(layer.bias)
    np.testing.assert_allclose(model(x), layer.activation(expected), atol=1e-4)


@pytest.mark.parametrize("ranks", [8, 3])
@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # without a graph
def test_all_variables_learn(case, ranks):
    model, layer, x = case
    masked(layer, ranks)
    layer.hidden_quantizer.clip.assign(1.0)
    layer.frozen.assign(1.0)
    before = [np.array(v) for v in model.trainable_variables]
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    model.fit(x, np.ones(model(x).shape), verbose=0)
    moved = {
        v.name: np.abs(np.array(v) - b).max() > 0
        for v, b in zip(model.trainable_variables, before, strict=True)
    }
    assert moved.pop("clip") == (ranks == 3)
    assert all(moved.values())


@pytest.mark.parametrize("ranks", [8, 3])
def test_inference_form_has_the_codes_and_levels_of_training(case, ranks):
    model, layer, x = case
    masked(layer, ranks)
    layer.frozen.assign(1.0)
    tiny = tfc.finalize(model)
    np.testing.assert_allclose(tiny(x), model(x), atol=1e-4)
    packed = [x for x in tiny.layers if isinstance(x, PackedKernel)]
    levels = [x for x in tiny.layers if isinstance(x, QuantizeActivation)]
    assert [x.kernel_bits for x in packed] == [8] * (1 + (ranks == 3))
    assert len(levels) == (ranks == 3)
    if ranks == 3:
        assert packed[0].codes.shape[-1] == 3 == packed[1].codes.shape[-2]
        assert packed[0].name == "layer_basis" and packed[1].name == "layer"


def test_batch_normalization_is_folded_into_the_codes():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 4))
    layer = FactorizedConv2D(8, 3, int8=True)
    norm = kl.BatchNormalization()
    model = keras.Model(inputs, norm(layer(inputs)))
    rng = np.random.default_rng(0)
    norm.set_weights([rng.uniform(0.5, 1.5, 8) for _ in range(4)])
    layer.frozen.assign(1.0)
    masked(layer, 3)
    tiny = tfc.finalize(model)
    assert not any(isinstance(x, kl.BatchNormalization) for x in tiny.layers)
    x = rng.normal(size=(4, 6, 6, 4)).astype("float32")
    np.testing.assert_allclose(tiny(x), model(x), atol=1e-4)


def test_int8_layer_is_saved_and_loaded(case, tmp_path):
    model, layer, x = case
    masked(layer, 3)
    layer.frozen.assign(1.0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
