"""Layers that wrap others: TimeDistributed, SpectralNormalization, Bidirectional."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests.graph.parts.replaced import IDS, embedded, normal, replaced_alike
from tfcompress.graph.parts.wrappers import UnitSpectralNorm

Steps = layers.TimeDistributed


def image_net():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.SeparableConv2D(4, 3, name="conv"),
            layers.GlobalAveragePooling2D(),
        ],
        name="net",
    )


@pytest.mark.parametrize("steps", [4, None])
@pytest.mark.parametrize(
    "make, shape, part",
    [
        (lambda: layers.Dense(3, name="part"), (8,), "wrapper/part"),
        (lambda: layers.Dense(3, name="part"), (2, 8), "wrapper/part"),
        (lambda: layers.Conv2D(3, 3, name="part"), (6, 6, 2), "wrapper/part"),
        (image_net, (8, 8, 3), "wrapper/net/conv"),
        (
            lambda: layers.EinsumDense("ab,bc->ac", 3, name="part"),
            (8,),
            "wrapper/part",
        ),
        (lambda: layers.LSTM(3, name="part"), (5, 8), "wrapper/part"),
        (
            lambda: Steps(layers.Dense(3, name="part"), name="inner"),
            (5, 8),
            "wrapper/inner/part",
        ),
    ],
)
def test_layers_of_steps_are_called_once(make, shape, part, steps):
    inputs = keras.Input((steps, *shape))
    model = keras.Model(inputs, Steps(make(), name="wrapper")(inputs))
    replaced = replaced_alike(model, normal(2, 4, *shape))
    assert "wrapper" in replaced.nested and not replaced.reasons
    assert part in {row.name for row in tfc.plan(model, tfc.PrunedTernary()).rows}
    assert replaced.model.output_shape == model.output_shape


@pytest.mark.parametrize("equation", [None, "ab,bc->ac"])
def test_masks_of_steps_reach_later_layers(equation):
    ids, x = embedded()
    inner = layers.EinsumDense(equation, 8) if equation else layers.Dense(8)
    outputs = layers.LSTM(3)(Steps(inner)(x))
    assert replaced_alike(keras.Model(ids, outputs), IDS).nested


def test_masks_that_a_layer_of_steps_reads_leave_it_whole():
    inputs = keras.Input((4, 6, 8))
    outputs = Steps(layers.LSTM(3), name="wrapper")(layers.Masking()(inputs))
    replaced = replaced_alike(keras.Model(inputs, outputs), normal(2, 4, 6, 8))
    assert replaced.reasons == {"wrapper": "passes the masks of its steps on"}


def test_layers_of_steps_without_kernels_are_left_as_they_are():
    inputs = keras.Input((4, 6, 8))
    model = keras.Model(inputs, Steps(layers.Flatten())(inputs))
    assert replaced_alike(model, normal(2, 4, 6, 8)).model is model


@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave", None])
def test_bidirectional_layers_are_opened_with_their_masks(mode):
    ids, x = embedded()
    layer = layers.Bidirectional(
        layers.LSTM(3, return_sequences=True), merge_mode=mode, name="both"
    )
    outputs = keras.tree.map_structure(
        lambda y: layers.GlobalAveragePooling1D()(y), layer(x)
    )
    replaced = replaced_alike(keras.Model(ids, outputs), IDS)
    assert replaced.nested == {"both"}


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_bidirectional_layers_are_opened_where_keras_runs_both_at_once(kind):
    inputs = keras.Input((6, 8))
    layer = layers.Bidirectional(kind(3), name="both")
    model = keras.Model(inputs, layer(inputs))
    before = vars(layer.forward_layer).get("use_cudnn")
    replaced = replaced_alike(model, normal(2, 6, 8))
    assert replaced.nested == {"both"}
    assert vars(layer.forward_layer).get("use_cudnn") == before


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: layers.Dense(3), (8,)),
        (lambda: layers.Conv2D(3, 3, padding="same"), (6, 6, 8)),
        (lambda: layers.DepthwiseConv2D(3), (6, 6, 8)),
        (lambda: layers.Conv2DTranspose(3, 2), (6, 6, 8)),
    ],
)
def test_spectral_normalization_becomes_a_constraint(make, shape):
    inputs = keras.Input(shape)
    kind = type(make())
    layer = layers.SpectralNormalization(make(), name="wrapper")
    replaced = replaced_alike(keras.Model(inputs, layer(inputs)), normal(2, *shape))
    part = replaced.model.get_layer("wrapper")
    assert type(part) is kind
    assert isinstance(part.kernel.constraint, UnitSpectralNorm)
    replaced.model.compile("adam", "mse")
    x = normal(16, *shape)
    replaced.model.fit(x, np.ones((16, *replaced.model.output_shape[1:])), verbose=0)
    kernel = keras.ops.convert_to_numpy(part.kernel)
    norm = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2)
    assert norm == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: layers.Dense(3, kernel_constraint="non_neg"), "has a layer with a"),
        (lambda: layers.EinsumDense("ab,bc->ac", 3), "layer of type EinsumDense"),
    ],
)
def test_other_spectral_normalization_stays_whole(make, reason):
    inputs = keras.Input((8,))
    layer = layers.SpectralNormalization(make(), name="wrapper")
    replaced = replaced_alike(keras.Model(inputs, layer(inputs)), normal(2, 8))
    assert reason in replaced.reasons["wrapper"]


def test_constraint_leaves_kernels_of_zeros_and_small_ones_valid():
    constraint = UnitSpectralNorm()
    values = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype("float32")
    for factor in (0.0, 1e-12, 1e-6, 1e6):
        kernel = np.array(constraint(factor * values))
        assert np.isfinite(kernel).all()
        norm = np.linalg.norm(kernel.reshape(-1, 5), 2)
        assert norm == pytest.approx(0 if factor == 0 else 1, abs=0.02)
