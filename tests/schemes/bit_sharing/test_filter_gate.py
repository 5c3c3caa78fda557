"""Gates of filter groups, on real layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.layers import FilterGate, QuantConv2D, QuantDense
from tfcompress.quantizers.gates import TEMPERATURE


def gated(filters, group_size, magnitudes=None, max_closed=0.75, shape=None):
    """`(gate, layer)` with |w| = `magnitudes` in the filters of the layer."""
    layer = QuantConv2D(filters, 3, name="conv")
    layer.build((None, 8, 8, 2))
    if magnitudes is not None:
        signs = np.where(np.arange(3 * 3 * 2) % 2, 1, -1).reshape(3, 3, 2, 1)
        layer.latent_kernel.assign(signs * np.asarray(magnitudes, "float32"))
    gate = FilterGate("conv", filters, group_size, max_closed)
    gate.build(shape or (None, 8, 8, filters))
    gate.connect(layer)
    return gate, layer


def random_magnitudes(filters, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 2, filters)


@pytest.mark.parametrize("filters, group_size, groups", [
    (8, 1, 8), (8, 4, 2), (7, 3, 3), (5, 4, 2), (3, 8, 1),
])  # fmt: skip
def test_importances_are_group_means_relative_to_the_layer(filters, group_size, groups):
    magnitudes = random_magnitudes(filters)
    gate, _ = gated(filters, group_size, magnitudes, max_closed=0.9)
    splits = np.split(magnitudes, range(group_size, filters, group_size))
    assert gate.group_count == len(splits) == groups
    np.testing.assert_array_equal(gate.group_sizes(), [len(s) for s in splits])
    means = np.array([s.mean() for s in splits])
    expected = means / means.mean()
    np.testing.assert_allclose(gate.importances(), expected, rtol=1e-5)
    # A threshold between two groups closes all those below.
    for threshold in (np.sort(expected)[:-1] + np.sort(expected)[1:]) / 2:
        gate.threshold.raw.assign([threshold])
        below = expected < threshold
        if below.sum() > gate.most_closed:
            continue
        open_filters = np.repeat(~below, [len(s) for s in splits])
        np.testing.assert_array_equal(gate.gates(), open_filters)
        np.testing.assert_array_equal(gate.open_channels(), open_filters.nonzero()[0])
        assert float(gate.kept()) == pytest.approx(open_filters.mean())
        np.testing.assert_array_equal(gate.margins() > 0, ~below)


@pytest.mark.parametrize("max_closed", [0.0, 0.3, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("magnitudes", [
    random_magnitudes(10), np.ones(10), np.zeros(10), np.arange(10) > 7,
    np.arange(10) > 1,
], ids=["random", "equal", "zero", "mostly zero", "some zero"])  # fmt: skip
def test_no_more_groups_close_than_the_share_allows(max_closed, magnitudes):
    gate, _ = gated(10, 1, magnitudes, max_closed)
    for threshold in (0.01, 1.0, 2.0):
        gate.threshold.raw.assign([threshold])
        assert np.sum(np.asarray(gate.gates()) == 0) <= int(max_closed * 10)


def test_highest_threshold_closes_as_many_groups_as_may_close():
    gate, _ = gated(10, 1, np.arange(1, 11) / 5.5, max_closed=0.7)
    gate.threshold.raw.assign([2.0])
    np.testing.assert_array_equal(gate.gates(), [0] * 7 + [1] * 3)


@pytest.mark.parametrize("magnitudes", [np.zeros(4), [1, 0, 1e-9, 1]])
def test_threshold_of_zero_closes_no_filter(magnitudes):
    gate, _ = gated(4, 1, magnitudes)
    np.testing.assert_array_equal(gate.gates(), np.ones(4))
    assert np.isfinite(gate.importances()).all()


def test_filter_of_zeros_is_the_first_to_close():
    gate, _ = gated(4, 1, [1, 0, 0.5, 1])
    gate.threshold.raw.assign([0.01])
    np.testing.assert_array_equal(gate.gates(), [1, 0, 1, 1])


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_closed_channels_are_zero_and_others_untouched(dtype):
    keras.config.set_dtype_policy(dtype)
    try:
        gate, _ = gated(4, 2, [1, 1, 0.1, 0.1])
    finally:
        keras.config.set_dtype_policy("float32")
    gate.threshold.raw.assign([0.5])
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    found = gate(x)
    assert found.dtype.name == gate.compute_dtype
    expected = tf.cast(x, found.dtype).numpy() * np.array(
        [1, 1, 0, 0], found.dtype.name
    )
    np.testing.assert_array_equal(found, expected)


def test_gate_after_flatten_closes_the_channel_at_every_position():
    gate, _ = gated(3, 1, [1, 0.1, 1], shape=(None, 12))
    gate.threshold.raw.assign([0.5])
    x = np.random.default_rng(0).normal(size=(2, 2, 2, 3)).astype("float32")
    found = gate(x.reshape(2, 12))
    np.testing.assert_array_equal(found, (x * [1, 0, 1]).reshape(2, 12))


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match=r"gates 4 channels.*\(None, 6\)"):
        FilterGate("conv", 4).build((None, 6))


def test_gate_has_the_gradient_of_a_sigmoid():
    magnitudes = [1.6, 1.2, 0.8, 0.4]  # of mean 1: these are the importances
    gate, layer = gated(4, 1, magnitudes)
    gate.threshold.raw.assign([0.5])
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    zero = tf.UnconnectedGradients.ZERO
    with tf.GradientTape(persistent=True) as tape:
        outputs, kept = tf.reduce_sum(gate(x)), gate.kept()
    soft = 1 / (1 + np.exp(-(np.array(magnitudes) - 0.5) / TEMPERATURE))
    slope = -soft * (1 - soft) / TEMPERATURE
    raw = gate.threshold.raw.value
    found = tape.gradient(outputs, raw)
    np.testing.assert_allclose(found, [np.sum(x.sum(0) * slope)], rtol=1e-4)
    np.testing.assert_allclose(tape.gradient(kept, raw), [slope.mean()], rtol=1e-4)
    # An importance that grows keeps its filter open: the weights learn that too.
    to_kernel = tape.gradient(outputs, layer.latent_kernel.value)
    assert np.isfinite(to_kernel).all() and np.abs(to_kernel).max() > 0
    gate.freeze(np.ones(4, bool))
    with tf.GradientTape() as tape:
        kept = gate.kept()
    assert tape.gradient(kept, raw, unconnected_gradients=zero).numpy() == 0


@pytest.mark.parametrize("filters, group_size", [(8, 1), (8, 4), (7, 3), (3, 8)])
def test_gradient_of_importances_is_that_of_the_formula(filters, group_size):
    gate, layer = gated(filters, group_size, random_magnitudes(filters), max_closed=0.9)
    gate.sensitivities.assign(random_magnitudes(gate.group_count, seed=1))
    upstream = np.random.default_rng(2).normal(size=gate.group_count)
    kernel = layer.latent_kernel.value
    with tf.GradientTape(persistent=True) as tape:
        found = tf.reduce_sum(gate.importances() * upstream)
        per_filter = tf.reduce_mean(tf.abs(kernel), axis=(0, 1, 2))
        groups = [
            tf.reduce_mean(per_filter[i : i + group_size])
            for i in range(0, filters, group_size)
        ]
        relative = tf.stack(groups) / tf.reduce_mean(groups)
        expected = tf.reduce_sum(relative * gate.sensitivities.value * upstream)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(
        tape.gradient(found, kernel), tape.gradient(expected, kernel), atol=1e-6
    )


@pytest.mark.parametrize("open_groups, mask", [
    ([True, False, True], [1, 1, 0, 0, 1]), ([False, True, False], [0, 0, 1, 1, 0]),
])  # fmt: skip
def test_frozen_gate_ignores_weights_and_threshold(open_groups, mask):
    gate, layer = gated(5, 2, random_magnitudes(5))
    gate.freeze(np.array(open_groups))
    layer.latent_kernel.assign(-3 * layer.latent_kernel)
    gate.threshold.raw.assign([1.0])
    np.testing.assert_array_equal(gate.gates(), mask)
    np.testing.assert_array_equal(gate(np.ones((1, 5), "float32")), [mask])


def test_gate_closes_filters_of_a_dense_layer():
    layer = QuantDense(3)
    layer.build((None, 7))
    layer.latent_kernel.assign(np.ones((7, 3)) * [0.1, 1.0, 1.0])
    gate = FilterGate("dense", 3)
    gate.build((None, 3))
    gate.connect(layer)
    gate.threshold.raw.assign([0.5])
    np.testing.assert_array_equal(gate.gates(), [0, 1, 1])


def test_gate_without_its_layer_says_what_to_do():
    gate = FilterGate("conv", 4)
    with pytest.raises(ValueError, match="'conv'.*no call of `connect`"):
        gate(np.ones((1, 4), "float32"))


def test_connected_layer_is_no_part_of_the_gate():
    gate, _ = gated(4, 1)
    assert len(gate.trainable_variables) == 1


@pytest.mark.parametrize("config, message", [
    ({"filters": 0}, "`filters` is a positive integer.*filters=0"),
    ({"filters": 4, "group_size": 1.5}, "`group_size` is a positive.*group_size=1.5"),
    ({"filters": 4, "max_closed": 1.0}, r"in \[0, 1\).*max_closed=1.0"),
])  # fmt: skip
def test_out_of_range_arguments_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        FilterGate("conv", **config)


def test_filter_gate_config_round_trip():
    gate = FilterGate("outer/conv", 10, 4, 0.5, name="gate")
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(gate)
    )
    assert copy.get_config() == gate.get_config()
