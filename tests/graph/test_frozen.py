"""Students of models with frozen layers, as in transfer learning."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.layers import TrainingForm

IMAGES = np.random.default_rng(0).normal(size=(16, 12, 12, 3)).astype("float32")
LABELS = np.arange(16) % 5
SCHEMES = {
    "ternary": lambda: tfc.PrunedTernary(sparsity=0.8),
    "bits": lambda: tfc.BitSharing(bops="1/60"),
    "ranks": lambda: tfc.Decomposition(macs="3/4"),
    "size": lambda: tfc.SizeConstrained(value_bits="1/10"),
    "uniform": lambda: tfc.Uniform(),
}
TRAINED = pytest.mark.parametrize(
    "scheme",
    [
        *("ternary", "ranks", "size"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("bits", "uniform")),
    ],
)
FROZEN = "left alone: is frozen (trainable=False)"
NAMES = ("base/conv0", "base/conv1", "hidden", "head")


def transfer(frozen=True):
    """A classifier on a nested base, which is frozen or not."""
    x = inputs = keras.Input((12, 12, 3))
    for i in range(2):
        x = layers.Conv2D(8, 3, padding="same", use_bias=False, name=f"conv{i}")(x)
        x = layers.BatchNormalization(name=f"bn{i}")(x)
        x = layers.ReLU(name=f"relu{i}")(x)
    base = keras.Model(inputs, x, name="base")
    base.trainable = not frozen
    outer = keras.Input((12, 12, 3))
    x = layers.GlobalAveragePooling2D(name="gap")(base(outer))
    x = layers.Dense(16, activation="relu", name="hidden")(x)
    return keras.Model(outer, layers.Dense(5, name="head")(x), name="transfer")


def fit(student):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile(keras.optimizers.Adam(1e-2), loss)
    student.fit(IMAGES, LABELS, batch_size=4, epochs=5, verbose=0)


def layer_of(model, name):
    for part in name.split("/"):
        model = model.get_layer(part)
    return model


def assert_finalized_predicts_alike(student):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tiny = tfc.finalize(student)
    expected = student.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(tiny.predict(IMAGES, verbose=0), expected, atol=1e-4)


def test_plan_lists_frozen_layers_with_the_reason():
    rows = tfc.plan(transfer(), tfc.PrunedTernary()).rows
    treatments = {row.name: row.treatment for row in rows}
    assert [treatments[name] for name in NAMES] == [
        FROZEN,
        FROZEN,
        "ternary weights",
        "8-bit weights",
    ]
    rows = tfc.plan(transfer(), tfc.PrunedTernary(), unfreeze=True).rows
    treatments = {row.name: row.treatment for row in rows}
    assert [treatments[name] for name in NAMES] == [
        "8-bit weights, unfrozen",
        "ternary weights, unfrozen",
        "ternary weights",
        "8-bit weights",
    ]


@pytest.mark.parametrize("scheme", ["ternary", "size", "uniform"])
def test_frozen_layers_stay_float_and_as_they_are(scheme):
    model = transfer()
    with pytest.warns(UserWarning, match="2 layers with 7.% of the weights.*unfreeze"):
        student = tfc.compress(model, SCHEMES[scheme]())
    fit(student)
    for name in ("base/conv0", "base/conv1", "base/bn0", "base/bn1"):
        layer = layer_of(student, name)
        assert not isinstance(layer, TrainingForm)
        for old, new in zip(
            layer_of(model, name).get_weights(), layer.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(old, new)
    assert_finalized_predicts_alike(student)


@pytest.mark.parametrize("scheme", ["bits", "ranks"])
def test_budgets_that_frozen_layers_exceed_name_the_argument(scheme):
    with pytest.raises(ValueError, match="can be met.*unfreeze=True"):
        tfc.plan(transfer(), SCHEMES[scheme]())


@TRAINED
def test_unfrozen_layers_are_compressed_and_trained(scheme):
    model = transfer()
    before = model.get_weights()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        student = tfc.compress(model, SCHEMES[scheme](), unfreeze=True)
    start = [np.array(x) for x in student.trainable_variables]
    thawed = tfc.compress(transfer(frozen=False), SCHEMES[scheme]())
    assert [x.shape for x in student.trainable_variables] == [
        x.shape for x in thawed.trainable_variables
    ]
    fit(student)
    kernels = [i for i, x in enumerate(start) if len(x.shape) > 1]
    for i in kernels:
        assert (start[i] != np.array(student.trainable_variables[i])).any()
    for name in NAMES:
        assert isinstance(layer_of(student, name), TrainingForm)
    assert layer_of(student, "base/bn1").trainable
    assert not layer_of(model, "base").trainable
    assert not layer_of(model, "base/bn1").trainable
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert_finalized_predicts_alike(student)


def test_models_that_are_frozen_throughout_are_refused():
    model = transfer()
    model.trainable = False
    with pytest.raises(ValueError, match="(?s)every layer is left.*unfreeze=True"):
        tfc.compress(model, tfc.PrunedTernary())
    student = tfc.compress(model, tfc.PrunedTernary(), unfreeze=True)
    assert len(student.trainable_variables) == 4 + 4 + 2 * 2 - 2


def test_model_frozen_as_a_whole_trains_only_the_layers_that_are_compressed():
    model = transfer()
    model.trainable = False
    scheme = tfc.PrunedTernary(overrides={"hidden": tfc.KeepFloat()})
    student = tfc.compress(model, scheme, unfreeze=True)
    assert not student.get_layer("hidden").trainable
    assert student.get_layer("head").trainable


def test_overrides_that_compress_a_frozen_layer_name_the_argument():
    overrides = {"base/conv1": tfc.QuantizeConfig(tfc.quantizers.Uniform(4))}
    with pytest.raises(ValueError, match="is frozen.*Pass unfreeze=True"):
        tfc.plan(transfer(), tfc.PrunedTernary(overrides=overrides))
    rows = tfc.plan(transfer(), tfc.PrunedTernary(overrides=overrides), True).rows
    assert "4-bit weights, unfrozen" in {row.treatment for row in rows}


def test_frozen_separable_convolutions_are_left_alone():
    inputs = keras.Input((12, 12, 3))
    separable = layers.SeparableConv2D(4, 3, name="separable", trainable=False)
    x = layers.Flatten()(separable(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    treatments = {
        row.name: row.treatment for row in tfc.plan(model, tfc.PrunedTernary()).rows
    }
    assert treatments["separable"] == treatments["separable_depthwise"] == FROZEN
    student = tfc.compress(model, tfc.PrunedTernary())
    assert len(student.trainable_variables) == 2
    student = tfc.compress(model, tfc.PrunedTernary(), unfreeze=True)
    assert len(student.trainable_variables) == 2 + 3


def test_few_frozen_weights_are_no_warning():
    model = transfer(frozen=False)
    layer_of(model, "base/bn0").trainable = False
    layer_of(model, "head").trainable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        student = tfc.compress(model, tfc.PrunedTernary(sparsity=0.8))
    assert not student.get_layer("head").trainable


@TRAINED
def test_frozen_batch_normalization_stays_as_it_is(scheme):
    model = transfer(frozen=False)
    for name in ("base/bn0", "base/bn1"):
        norm = layer_of(model, name)
        norm.trainable = False
        norm.moving_mean.assign(norm.moving_mean + 0.5)
        norm.gamma.assign(norm.gamma * 1.5)
    student = tfc.compress(model, SCHEMES[scheme]())
    fit(student)
    norm = layer_of(student, "base/bn1")
    np.testing.assert_array_equal(
        norm.moving_mean, layer_of(model, "base/bn1").moving_mean
    )
    assert_finalized_predicts_alike(student)
