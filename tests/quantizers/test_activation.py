import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.layers import QuantConv2D, QuantDense
from tfcompress.quantizers import ActivationQuantizer, Uniform, UniformActivation
from tfcompress.quantizers.activation import gradient_scale, quantize_activation

GRIDS = [(bits, signed) for bits in (2, 4, 8) for signed in (False, True)]


def build(quantizer):
    quantizer.build((None, 1))
    return quantizer


def values(size=20_000, spread=2.0):
    """float32 (100, size / 100), inside and outside of a clip of 1."""
    x = np.random.default_rng(0).normal(scale=spread, size=(100, size // 100))
    return x.astype("float32")


def reference(x, step, low, high):
    """The definition of quantized activations, in float32."""
    step = np.float32(step)
    return np.clip(np.round(x / step), low, high).astype("float32") * step


@pytest.mark.parametrize("bits, signed", GRIDS)
def test_activations_are_integer_levels_times_one_step(bits, signed):
    quantizer = build(UniformActivation(bits, signed, initial_clip=0.7))
    low, high = quantizer.code_range()
    limit = 2 ** (bits - 1) - 1
    lowest = -128 if bits == 8 else -limit  # of int8
    assert (low, high) == ((lowest, limit) if signed else (0, 2**bits - 1))
    step = quantizer.scale_value()
    assert step == pytest.approx((1.4 if signed else 0.7) / (2**bits - 1))
    x = values()
    for training in (False, True):
        found = np.asarray(quantizer(x, training=training))
        np.testing.assert_array_equal(found, reference(x, step, low, high))
    levels = np.rint(found / np.float32(step))
    assert (levels.min(), levels.max()) == (low, high)


@pytest.mark.parametrize("bits, signed", GRIDS)
def test_activations_round_ties_to_the_even_level(bits, signed):
    """With a step that is a power of two, ties are exact in float32."""
    quantizer = build(
        UniformActivation(bits, signed, (2**bits - 1) / (2 if signed else 1) / 8)
    )
    assert quantizer.scale_value() == 1 / 8
    low, high = quantizer.code_range()
    ties = (np.arange(low, high) + 0.5) / 8
    levels = np.asarray(quantizer(ties.astype("float32")[None])) * 8
    assert (levels % 2 == 0).all()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("finer, coarser", [(8, 4), (4, 2), (8, 2)])
def test_rounding_to_nested_grids_in_turn_equals_rounding_once(finer, coarser, signed):
    """The finer grid contains the coarser: 255 = 17 x 15, 15 = 5 x 3. Ties included."""
    clip = (2**finer - 1) / (2 if signed else 1) / 256
    fine, coarse = (
        build(UniformActivation(bits, signed, clip)) for bits in (finer, coarser)
    )
    x = np.linspace(-1.5 * clip, 1.5 * clip, 60_001).astype("float32")[None]
    halves = np.arange(-600, 600) * (fine.scale_value() / 2)
    for inputs in (x, halves.astype("float32")[None]):
        np.testing.assert_array_equal(coarse(fine(inputs)), coarse(inputs))


def gradients(quantizer, x, weights):
    """d sum(weights * quantizer(x)) / d(x, clip)."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(weights * quantizer(x))
    return [g.numpy() for g in tape.gradient(loss, [x, quantizer.clip.value])]


@pytest.mark.parametrize("bits, signed", GRIDS)
@pytest.mark.parametrize("clip", [0.7, -0.7])
def test_uniform_activation_has_the_gradients_of_lsq(bits, signed, clip):
    quantizer = build(UniformActivation(bits, signed))
    quantizer.clip.assign(clip)
    low, high = quantizer.code_range()
    step = quantizer.scale_value()
    x = values()
    weights = np.random.default_rng(1).normal(size=x.shape).astype("float32")
    to_x, to_clip = gradients(quantizer, x, weights)

    inside = (x / step > low) & (x / step < high)
    np.testing.assert_allclose(to_x, np.where(inside, weights, 0), rtol=1e-6)
    value = reference(x, step, low, high).astype("float64")
    slope = np.where(inside, value - x, value) / clip
    expected = np.sum(weights * slope) / np.sqrt(x.shape[1] * high)
    assert to_clip == pytest.approx(expected, rel=1e-4)


def test_gradient_scale_uses_sizes_that_are_unknown_before_the_call():
    @tf.function(input_signature=[tf.TensorSpec((None, None, 3))])
    def scale(x):
        return gradient_scale(x, 15)

    assert float(scale(tf.ones((8, 5, 3)))) == pytest.approx((5 * 3 * 15) ** -0.5)


def test_uniform_activation_with_a_clip_of_zero_is_finite():
    quantizer = build(UniformActivation(4))
    quantizer.clip.assign(0.0)
    x = values()
    assert np.isfinite(quantizer(x)).all()
    assert all(np.isfinite(g).all() for g in gradients(quantizer, x, np.ones(x.shape)))


def student(**config):
    inputs = keras.Input((8, 8, 3))
    x = QuantConv2D(
        6,
        3,
        activation="relu",
        kernel_quantizer=Uniform(4),
        input_quantizer=UniformActivation(4, signed=True, initial_clip=3.0),
        **config,
    )(inputs)
    x = QuantDense(
        2, kernel_quantizer=Uniform(4), input_quantizer=UniformActivation(4), **config
    )(keras.layers.Flatten()(x))
    return keras.Model(inputs, x)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_clips_of_activations_train_and_reload(jit_compile, tmp_path):
    model = student()
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=jit_compile)
    losses = model.fit(x, x[:, 0, 0, :2], epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    scales = [model.layers[i].input_quantizer.scale_value() for i in (1, 3)]
    assert scales[0] != pytest.approx(6 / 15) and scales[1] != pytest.approx(1 / 15)

    model.save(tmp_path / "student.keras")
    restored = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(restored(x), model(x))
    assert scales == [restored.layers[i].input_quantizer.scale_value() for i in (1, 3)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_activations_are_rounded_in_float32_under_mixed_precision(dtype):
    model = student(dtype=f"mixed_{dtype}")
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    assert model(x).dtype == dtype
    quantizer = model.layers[1].input_quantizer
    x = tf.cast(x, dtype)
    expected = reference(x.numpy().astype("float32"), quantizer.scale_value(), -7, 7)
    np.testing.assert_array_equal(quantizer(x), expected)


def test_activation_quantizer_needs_only_bits_and_a_step():
    class Halves(ActivationQuantizer):
        bits = 3

        def step(self):
            return keras.ops.convert_to_tensor(0.5)

    quantizer = build(Halves(signed=True))
    x = values()
    np.testing.assert_array_equal(quantizer(x), reference(x, 0.5, -3, 3))
    np.testing.assert_array_equal(quantizer(x), quantize_activation(x, 0.5, -3, 3))
    assert quantizer.scale_value() == 0.5


def test_uniform_activation_config_round_trip():
    quantizer = UniformActivation(3, signed=True, initial_clip=2.5)
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(quantizer)
    )
    assert restored.get_config() == quantizer.get_config()
    assert (restored.bits, restored.signed, restored.initial_clip) == (3, True, 2.5)


@pytest.mark.parametrize("bits", [1, 9, 4.5])
def test_uniform_activation_refuses_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="from 2 to 8"):
        UniformActivation(bits)


@pytest.mark.parametrize("clip", [0, -1, float("inf"), float("nan")])
def test_uniform_activation_refuses_a_clip_out_of_range(clip):
    with pytest.raises(ValueError, match="positive finite number"):
        UniformActivation(initial_clip=clip)
