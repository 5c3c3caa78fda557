"""Activations that ranges are calibrated to."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tfcompress.core.training.calibration import (
    CalibrateActivations,
    calibrate_activations,
    read_activations,
    sampled_calls,
)
from tfcompress.core.training.data import some_batches
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.quantizers.ranges import CLIP_SAMPLES, best_clip, sampled_values


def images(count, size=24):
    return (
        np.random.default_rng(0).normal(size=(count, size, size, 3)).astype("float32")
    )


def convolutions():
    return keras.Sequential(
        [
            keras.Input((24, 24, 3)),
            layers.Conv2D(8, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(4, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )


@pytest.fixture
def student():
    return tfc.compress(convolutions(), tfc.Uniform(4, 4))


def quantizers_of(student):
    return {
        layer.name: layer.input_quantizer
        for layer in student.layers
        if getattr(layer, "input_quantizer", None) is not None
    }


@pytest.mark.parametrize("count, size", [(5, 3), (5, 5), (40, 1000)])
def test_samples_are_values_of_the_tensor(count, size):
    x = np.random.default_rng(1).permutation(size).astype("float32").reshape(1, -1)
    first, again, other = (
        sampled_values(ops.convert_to_tensor(x), count, np.int32(turn))
        for turn in (0, 0, 1)
    )
    values, check = (np.array(part) for part in first)
    assert check == 0
    np.testing.assert_array_equal(values, np.array(again[0]))
    assert len(values) == min(count, size) and np.isin(values, x).all()
    if size > count:
        assert (values != np.array(other[0])).any()
    else:
        np.testing.assert_array_equal(values, x.ravel())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found_among_many(bad):
    x = np.zeros(10_000, "float32")
    x[4321] = bad
    values, check = sampled_values(ops.convert_to_tensor(x), 10, np.int32(0))
    assert np.isfinite(np.array(values)).all()
    assert np.isnan(np.array(check))


def test_values_read_do_not_grow_with_the_batches(student):
    batches = list(images(64)[:, None])
    recalibrate = Recalibration(student, batches)
    read = read_activations(recalibrate, quantizers_of(student), batches)
    sizes = {name: len(values) for name, values in read.items()}
    assert sizes == {
        # All, where 64 batches have fewer than enough.
        "conv2d": min(CLIP_SAMPLES + 63, 64 * 24 * 24 * 3) // 64 * 64,
        "conv2d_1": -(-CLIP_SAMPLES // 64) * 64,
        "dense": 64 * 4,
    }


def test_ranges_are_those_of_float_activations(student):
    batches = np.split(images(64), 4)
    calibrate_activations(Recalibration(student, batches))
    quantizer = quantizers_of(student)["conv2d"]
    assert float(quantizer.calibrated) == 1
    expected = best_clip(np.concatenate(batches), 8, signed=True)  # first layer
    assert float(quantizer.clip) == pytest.approx(expected, rel=0.15)


def test_ranges_do_not_depend_on_moving_statistics():
    """They may be far from those of a batch: here they shrink the input of a layer."""
    student = tfc.compress(convolutions(), tfc.BitSharing("1/60"))
    norm = next(x for x in student.layers if isinstance(x, layers.BatchNormalization))
    recalibrate = Recalibration(student, np.split(images(64), 4))
    ranges = []
    for variance in (1.0, 1e6):
        norm.moving_variance.assign(np.full(8, variance))
        calibrate_activations(recalibrate)
        ranges.append([float(x.clip) for x in quantizers_of(student).values()])
        np.testing.assert_array_equal(norm.moving_variance, variance)
    assert ranges[0] == ranges[1]


def test_calibration_refuses_one_bad_pixel_and_changes_no_range(student):
    batches = np.split(images(64), 4)
    batches[2][7, 5, 5, 1] = np.inf
    with pytest.raises(ValueError, match="Finite activations are expected in 'conv2d'"):
        calibrate_activations(Recalibration(student, batches))
    assert all(float(x.calibrated) == 0 for x in quantizers_of(student).values())
    for quantizer in quantizers_of(student).values():  # they round again
        x = ops.convert_to_tensor(batches[0])
        assert (np.array(quantizer(x)) != batches[0]).any()


def test_activations_are_read_once(student):
    callback = CalibrateActivations(Recalibration(student, np.split(images(16), 2)))
    callback.set_model(student)
    callback.on_train_begin()
    assert set(callback.take_activations()) == set(quantizers_of(student))
    assert callback.take_activations() is None
    callback.on_train_begin()  # the ranges are set by now
    assert callback.take_activations() is None


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="counts the traces of TensorFlow"
)
def test_batches_of_many_lengths_compile_twice():
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, layers.Conv1D(2, 3, padding="same")(inputs))
    traced = []

    def function(x):
        traced.append(x.shape)
        return {"conv": [model(x)]}

    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(4, n, 3)).astype("float32") for n in range(5, 13)]
    read = sampled_calls(model, function, batches, "Lengths")
    assert len(traced) == 2
    expected = np.concatenate([np.array(model(x)).ravel() for x in batches])
    # With an unknown length any value may be taken more than once.
    assert len(read["conv"]) >= len(expected)
    assert np.isclose(read["conv"][:, None], expected, atol=1e-6).any(axis=1).all()


def test_some_batches_are_spread_over_all():
    batches = [np.full((8, 1), i) for i in range(10)]
    assert [int(x[0, 0]) for x in some_batches(batches, 40)] == [0, 2, 4, 6, 8]
    assert [int(x[0, 0]) for x in some_batches(batches, 1)] == [0]
    assert len(some_batches(batches, 1000)) == 10
    assert some_batches([], 40) == []


def test_model_without_quantized_activations_is_not_called():
    student = tfc.compress(convolutions(), tfc.Uniform(4, None))
    student.call = None
    assert calibrate_activations(Recalibration(student, [images(2)])) == {}
