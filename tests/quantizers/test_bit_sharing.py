"""Quantizers of weights on nested grids: codes, gradients, ranges and gates."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tfcompress.layers import QuantConv2D, QuantDense, QuantDepthwiseConv2D
from tfcompress.quantizers import BitSharing, nested
from tfcompress.quantizers.activation import activation_range
from tfcompress.quantizers.ranges import (
    CLIP_FACTORS,
    CLIP_SAMPLES,
    best_clip,
    best_clips,
)
from tfcompress.schemes.bit_sharing.search_space import SearchSpace

SHAPES = {
    "conv": ((3, 3, 5, 7), (-1,)),
    "depthwise": ((3, 3, 5, 2), (-2, -1)),
    "dense": ((20, 6), (-1,)),
}
shapes = pytest.mark.parametrize("shape, axes", SHAPES.values(), ids=SHAPES)
# Thresholds on errors of 1, and the bits that they select.
OPEN = [((0.5, 0.5), 8), ((0.5, 1.5), 4), ((1.5, 0.5), 2)]


def built(shape, axes=(-1,), **config):
    quantizer = BitSharing(**config)
    quantizer.channel_axes = axes
    quantizer.build(shape)
    return quantizer


def kernel(shape, seed=0):
    """Normal weights, with filters of different lengths."""
    w = np.random.default_rng(seed).normal(size=shape)
    return (w * np.geomspace(0.01, 10, shape[-1])).astype("float32")


def set_bits(quantizer, bits):
    if len(quantizer.candidates) > 1:
        position = quantizer.candidates.index(bits)
        thresholds = ((1.5, 0.5), (0.5, 1.5), (0.5, 0.5))[position]
        quantizer.gates.threshold.raw.assign(thresholds)
    assert quantizer.bits == bits


@shapes
@pytest.mark.parametrize("candidates, bits", [
    ((2, 4, 8), 2), ((2, 4, 8), 4), ((2, 4, 8), 8), *(((b,), b) for b in range(2, 9)),
    ((2, 3, 7), 3), ((3, 4, 6), 6),
])  # fmt: skip
def test_bit_sharing_codes_times_scale_equal_the_quantized_kernel(
    shape, axes, candidates, bits
):
    quantizer = built(shape, axes, bits=candidates)
    set_bits(quantizer, bits)
    w = kernel(shape)
    quantizer.calibrate(w)
    quantizer.clip.assign(-0.8 * quantizer.clip)  # |clip| is used
    codes, scale = quantizer.encode(w)
    limit = 2 ** (bits - 1) - 1
    assert codes.dtype == np.int8 and codes.shape == shape
    assert (codes.min(), codes.max()) == (-limit, limit)
    expected = [n if i - len(shape) in axes else 1 for i, n in enumerate(shape)]
    assert list(scale.shape) == expected and (scale > 0).all()
    for training in (False, True):
        np.testing.assert_array_equal(quantizer(w, training=training), codes * scale)


@shapes
def test_scale_is_proportional_to_the_root_mean_square_of_a_channel(shape, axes):
    quantizer = built(shape, axes, bits=(4,))
    quantizer.clip.assign(2.5)
    w = kernel(shape)
    _, scale = quantizer.encode(w)
    others = tuple(i for i in range(len(shape)) if i - len(shape) not in axes)
    rms = np.sqrt(np.mean(w.astype("float64") ** 2, axis=others, keepdims=True))
    np.testing.assert_allclose(scale, 2 * 2.5 / 15 * rms, rtol=1e-5)
    # The length of a filter does not change its codes; a power of 2 is exact.
    codes, _ = quantizer.encode(w)
    np.testing.assert_array_equal(quantizer.encode(4 * w)[0], codes)


@pytest.mark.parametrize("zero", ["channel", "kernel"])
@pytest.mark.parametrize("grid", ["symmetric", "paper"])
def test_kernels_with_zero_channels_give_finite_values_and_gradients(zero, grid):
    w = kernel((6, 3))
    w[:, 1 if zero == "channel" else slice(None)] = 0
    quantizer = built(w.shape, grid=grid)
    quantizer.calibrate(w)
    with tf.GradientTape() as tape:
        x = tf.constant(w)
        tape.watch(x)
        value = quantizer(x, training=True)
        loss = tf.reduce_sum(value)
    assert np.isfinite(tape.gradient(loss, x)).all() and np.isfinite(value).all()
    if grid == "symmetric":
        codes, scale = quantizer.encode(w)
        assert not codes[:, 1].any() and (scale > 0).all()
        np.testing.assert_array_equal(value, codes * scale)


@pytest.mark.parametrize("thresholds, bits", OPEN)
def test_bit_sharing_with_the_paper_grid_has_no_codes(thresholds, bits):
    quantizer = built((40, 6), grid="paper")
    quantizer.gates.threshold.raw.assign(thresholds)
    quantizer.clip.assign(1.5)
    w = kernel((40, 6))
    z = (np.clip((w - w.mean()) / w.std() / 1.5, -1, 1) + 1) / 2
    codes = np.round(z * (2**bits - 1))
    expected = 1.5 * (2 * codes / (2**bits - 1) - 1)
    np.testing.assert_allclose(quantizer(w), expected, atol=1e-5)
    with pytest.raises(ValueError, match="grid='paper'.*Use grid='symmetric'"):
        quantizer.encode(w)


@shapes
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradients_of_kernel_and_clip_match_numpy(shape, axes, bits):
    quantizer = built(shape, axes)
    set_bits(quantizer, bits)
    clip = 1.3
    quantizer.clip.assign(clip)
    w = kernel(shape)
    g = np.random.default_rng(1).normal(size=shape).astype("float32")
    x = tf.constant(w)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = quantizer(x, training=True)
        loss = tf.reduce_sum(g * value)
    to_kernel, to_clip = tape.gradient(loss, (x, quantizer.clip.value))
    others = tuple(i for i in range(len(shape)) if i - len(shape) not in axes)
    rms = np.sqrt(np.mean(np.square(w), axis=others, keepdims=True))
    inside = np.abs(w / rms) < clip
    assert 0.5 < inside.mean() < 0.95
    np.testing.assert_allclose(to_kernel, g * inside, rtol=1e-5)
    # The slope of LSQ: (value - w) / clip inside the range, value / clip outside.
    slope = np.where(inside, value - w, value) / clip
    expected = np.sum(g * slope) / np.sqrt(np.prod(shape))
    np.testing.assert_allclose(to_clip, expected, rtol=1e-3, atol=1e-5)


def test_threshold_gradient_is_the_slope_times_the_offsets():
    w = kernel((30, 5))
    quantizer = built(w.shape)
    quantizer.clip.assign(1.3)
    quantizer.gates.threshold.raw.assign([0.5, 0.5])
    values = {}
    for bits in nested.BITS:
        single = built(w.shape, bits=(bits,))
        single.clip.assign(1.3)
        values[bits] = np.asarray(single(w))
    g = np.random.default_rng(1).normal(size=w.shape).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(g * quantizer(w, training=True))
    found = tape.gradient(loss, quantizer.gates.threshold.raw.value)
    soft = 1 / (1 + np.exp(-0.5 / 0.5))
    slope = -soft * (1 - soft) / 0.5
    to_gates = [
        np.sum(g * (values[8] - values[2])),
        np.sum(g * (values[8] - values[4])),
    ]
    np.testing.assert_allclose(found, slope * np.array(to_gates), rtol=1e-3)


def test_gates_of_a_large_kernel_learn_from_some_of_its_filters(monkeypatch):
    g = np.random.default_rng(1).normal(size=(30, 5)).astype("float32")
    w, g = (np.repeat(x, 2, axis=1) for x in (kernel((30, 5)), g))

    def gradient_and_errors(weights):
        monkeypatch.setattr("tfcompress.quantizers.bit_sharing.GATE_WEIGHTS", weights)
        quantizer = built(w.shape)
        quantizer.gates.threshold.raw.assign([0.5, 0.5])
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(g * quantizer(w, training=True))
        raw = quantizer.gates.threshold.raw.value
        return tape.gradient(loss, raw), np.array(quantizer.gates.errors)

    half, whole = (gradient_and_errors(size) for size in (w.size // 2, w.size))
    for found, expected in zip(half, whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    w[:, 1::2] = 0  # these take no part
    np.testing.assert_allclose(gradient_and_errors(w.size // 2)[1], half[1], rtol=1e-4)
    assert (gradient_and_errors(w.size)[1] != whole[1]).all()


@pytest.mark.parametrize("bits", nested.BITS)
def test_frozen_gates_need_no_search_in_a_training_step(bits):
    w = kernel((30, 5))
    quantizer = built(w.shape)
    quantizer.gates.freeze(bits)
    expected = quantizer(w, training=True)
    quantizer.gates.is_searching = False
    errors = np.array(quantizer.gates.errors)
    np.testing.assert_array_equal(quantizer(w, training=True), expected)
    np.testing.assert_array_equal(quantizer.gates.errors, errors)


def test_training_steps_update_the_averages_of_grid_errors():
    w = kernel((3, 3, 5, 7))
    quantizer = built(w.shape)
    quantizer.calibrate(w)
    before = np.array(quantizer.gates.errors)
    unit = w / np.sqrt(np.mean(np.square(w), axis=(0, 1, 2), keepdims=True))
    clip = float(quantizer.clip)
    unit, errors = np.clip(unit, -clip, clip), []
    for steps in (3, 15):
        step, limit = 2 * clip / steps, (steps - 1) / 2
        value = np.clip(np.round(unit / step), -limit, limit) * step
        errors.append(np.mean(np.abs(unit - value)) / (step / 4))
    np.testing.assert_allclose(before, errors, rtol=1e-4)
    quantizer(w, training=False)
    np.testing.assert_array_equal(quantizer.gates.errors, before)
    quantizer(2 * w[::-1] + 0.1, training=True)
    assert (np.array(quantizer.gates.errors) != before).all()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_best_clip_has_the_least_squared_error(bits, signed):
    values = np.random.default_rng(bits).normal(size=3000).astype("float32")
    low, high = activation_range(bits, signed)
    largest = np.abs(values).max() if signed else values.max()

    def error(clip):
        step = (2 * clip if signed else clip) / (2**bits - 1)
        return np.mean(
            (values - step * np.clip(np.round(values / step), low, high)) ** 2
        )

    found = best_clip(values, bits, signed)
    errors = [error(largest * f) for f in CLIP_FACTORS]
    assert found == pytest.approx(largest * CLIP_FACTORS[np.argmin(errors)])
    # A line search that is ten times as fine finds nothing much better.
    finest = min(error(clip) for clip in largest * np.geomspace(0.02, 1, 400))
    assert error(found) <= 1.06 * finest


@pytest.mark.parametrize("values", [np.zeros(9), -np.ones(9), np.zeros(0)])
def test_best_clip_is_1_for_values_without_a_range(values):
    assert best_clip(values, 4, signed=False) == 1.0


def test_calibrate_sets_the_best_clip_for_the_present_bits():
    w = kernel((60, 8))
    unit = w / np.sqrt(np.mean(np.square(w), axis=0, keepdims=True))
    quantizer = built(w.shape)
    for bits in (4, 2, 8):  # 4, the middle ones, during the search
        quantizer.calibrate(w)
        expected = best_clip(unit, bits, signed=True)
        assert float(quantizer.clip) == pytest.approx(expected, rel=1e-5)
        quantizer.gates.freeze({4: 2, 2: 8, 8: 8}[bits])


def test_calibration_of_large_tensors_sees_every_channel():
    channels = 64
    w = np.ones((CLIP_SAMPLES, channels), "float32")
    w[:, 0] = 0  # every n-th value belongs to this channel
    w[:, 1::2] = 3
    assert best_clip(w.reshape(-1), 8, True) == pytest.approx(3, rel=0.05)
    quantizer = built(w.shape, axes=(-2, -1), bits=(8,))
    quantizer.calibrate(w)
    assert float(quantizer.clip) == pytest.approx(1, rel=0.05)


def test_saved_models_restore_gates_range_and_codes(tmp_path):
    inputs = keras.Input((9, 9, 4))
    x = QuantConv2D(3, 3, name="conv", kernel_quantizer=BitSharing())(inputs)
    x = QuantDepthwiseConv2D(3, kernel_quantizer=BitSharing((4, 8)))(x)
    model = keras.Model(inputs, QuantDense(2, kernel_quantizer=BitSharing((5,)))(x))
    quantizers = [layer.kernel_quantizer for layer in model.layers[1:]]
    quantizers[0].gates.threshold.raw.assign([0.2, 0.6])
    quantizers[0].gates.errors.assign([0.3, 0.5])
    quantizers[0].clip.assign(1.7)
    quantizers[1].gates.freeze(4)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, 9, 9, 4)).astype("float32")
    np.testing.assert_array_equal(restored(x), model(x))
    loaded = [layer.kernel_quantizer for layer in restored.layers[1:]]
    assert [q.bits for q in loaded] == [q.bits for q in quantizers] == [4, 4, 5]
    assert [q.unfinished() is None for q in loaded] == [False, True, True]
    for old, new in zip(quantizers, loaded, strict=True):
        assert new.get_config() == old.get_config()
        for a, b in zip(old.variables, new.variables, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_bit_sharing_computes_codes_in_float32_under_mixed_precision(policy):
    layer = QuantDense(8, kernel_quantizer=BitSharing(), dtype=policy)
    layer.build((None, 64))
    quantizer = layer.kernel_quantizer
    quantizer.calibrate(layer.latent_kernel)
    codes, scale = quantizer.encode(layer.latent_kernel)
    x = np.eye(64, dtype="float32")
    expected = tf.cast(codes * scale, layer.compute_dtype)
    np.testing.assert_array_equal(layer(x, training=True), expected)
    assert quantizer.clip.dtype == quantizer.gates.errors.dtype == "float32"


def test_depthwise_kernels_have_a_scale_per_channel_and_multiplier():
    layer = QuantDepthwiseConv2D(3, depth_multiplier=2, kernel_quantizer=BitSharing())
    layer.build((None, 8, 8, 5))
    _, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
    assert scale.shape == (1, 1, 5, 2)


@pytest.mark.parametrize("penalty, bits", [(0.0, 8), (1e4, 2)])
def test_a_bops_penalty_closes_gates_and_no_penalty_keeps_them_open(penalty, bits):
    inputs = keras.Input((6, 6, 2))
    x = inputs
    for name in ("first", "conv", "last"):
        x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name=name)(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    scheme = tfc.BitSharing(penalty=penalty, group_size=None)
    student = tfc.compress(model, scheme)
    space = SearchSpace(student)
    space.budget.strength.assign(penalty)
    student.compile(keras.optimizers.SGD(0.01), "mse")
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(8, 6, 6, 2)), rng.normal(size=(8, 8))
    student.training_run.trainer = student  # as in a loop with its callbacks
    for step in range(2):  # weights and activations take turns
        student.train_on_batch(images.astype("float32"), labels.astype("float32"))
        layer = space.layers["conv"]
        pair = (layer.kernel_quantizer.bits, layer.input_quantizer.bits)
        assert pair == ((8, bits) if step == 0 else (bits, bits))
    assert space.layers["first"].kernel_quantizer.bits == 8


@pytest.mark.parametrize("bits", [(), (2, 16), (1,), (9,), (1, 2), "24", 4, (2.5, 4)])
def test_bit_sharing_refuses_other_candidates(bits):
    with pytest.raises(ValueError, match="integers from 2 to 8.*Received"):
        BitSharing(bits)


def test_best_clips_have_the_least_error_of_each_candidate():
    values = np.random.default_rng(0).normal(size=1000)
    clips = best_clips(values, (2, 3, 8), signed=True)
    for bits, clip in clips.items():
        assert clip == best_clip(values.astype("float32"), bits, signed=True)
    assert clips[2] < clips[3] < clips[8]


def test_bit_sharing_refuses_an_unknown_grid():
    with pytest.raises(ValueError, match="'symmetric', 'paper'.*grid='round'"):
        BitSharing(grid="round")


# Parameters: operations of a step in a search, and of one after it.
@pytest.mark.parametrize("searching, most", [(True, 135), (False, 52)])
def test_training_step_of_a_quantizer_takes_few_operations(searching, most):
    """A step has two of them per layer, and its compilation takes as many in turn."""
    quantizer = built((1, 1, 32, 64))
    quantizer.gates.is_searching = searching

    @tf.function
    def step(kernel):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            loss = tf.reduce_sum(quantizer(kernel, training=True))
        return tape.gradient(loss, [kernel, *quantizer.trainable_variables])

    graph = step.get_concrete_function(tf.zeros((1, 1, 32, 64))).graph
    kinds = [op.type for op in graph.get_operations()]
    assert sum(kind not in ("Const", "Placeholder") for kind in kinds) <= most
