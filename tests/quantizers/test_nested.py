"""Nested grids against an independent NumPy version of the paper's recursion."""

import numpy as np
import pytest
from keras import ops

from tfcompress.quantizers import functional as F
from tfcompress.quantizers import nested
from tfcompress.quantizers.activation import activation_range


def recursion(x, clip, signed):
    """z_2, z_4 and z_8 by the paper's residual rounding, in float64."""
    z = np.clip(x.astype(np.float64), -clip * (1 - 1e-7) if signed else 0, clip)
    if signed:
        z = np.minimum(z, clip * (1 - 1e-7))
    step = (2 if signed else 1) * clip / 3
    value = step * np.round(z / step)
    values = [value]
    for bits in (2, 4):
        step /= 2**bits + 1
        value = value + step * np.round((z - value) / step)
        values.append(value)
    return values


def rounded_alone(x, clip, signed, bits):
    """Values on grids that need not contain each other, in float64."""
    low, high = -clip if signed else 0, clip
    values = []
    for b in bits:
        step = (high - low) / (2**b - 1)
        codes = np.round(x.astype(np.float64) / step)
        most = 2 ** (b - 1) - 1 if signed else 2**b - 1
        values.append(step * np.clip(codes, -most if signed else 0, most))
    return values


@pytest.mark.parametrize("signed", [True, False])
def test_rounding_once_equals_the_papers_recursion(signed):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1.5, 400_000).astype("float32")
    clip = np.float32(1.7)
    for bits, expected in zip(nested.BITS, recursion(x, 1.7, signed), strict=True):
        steps = nested.levels(bits)
        codes = ops.convert_to_numpy(nested.nested_codes(x, clip, steps, signed))
        step = (2 if signed else 1) * 1.7 / steps
        wrong = codes != np.round(expected / step)
        # Only float32 division may differ, on the other side of a tie.
        distance = np.abs(x[wrong] / step - np.round(x[wrong] / step))
        assert wrong.sum() < 10 and (distance > 0.49999).all()
        _, high = activation_range(bits, signed)
        assert (codes.min(), codes.max()) == (-high if signed else 0, high)


@pytest.mark.parametrize("signed", [True, False])
def test_rounding_to_8_4_and_2_bits_in_turn_equals_rounding_once(signed):
    x = np.random.default_rng(1).normal(0, 1, 100_000).astype("float32")
    clip = np.float32(1.3)

    def rounded(x, bits):
        steps = nested.levels(bits)
        codes = nested.nested_codes(x, clip, steps, signed)
        return ops.convert_to_numpy(codes * nested.step_size(clip, steps, signed))

    in_stages = rounded(rounded(rounded(x, 8), 4), 2)
    np.testing.assert_array_equal(in_stages, rounded(x, 2))


@pytest.mark.parametrize("gates, bits", [((0, 0), 2), ((0, 1), 2), ((1, 0), 4),
                                         ((1, 1), 8)])  # fmt: skip
@pytest.mark.parametrize("signed", [True, False])
def test_share_bits_computes_the_bits_of_the_open_gates(gates, bits, signed):
    x = np.random.default_rng(2).normal(0, 1, (50, 20)).astype("float32")
    clip = ops.convert_to_tensor(1.5, "float32")
    gates = ops.convert_to_tensor(gates, "float32")
    value = share_bits(x, clip, gates, nested.BITS, signed)
    steps = nested.levels(bits)
    codes = nested.nested_codes(x, clip, steps, signed)
    expected = codes * nested.step_size(clip, steps, signed)
    np.testing.assert_array_equal(value, expected)
    assert float(nested.expected_bits(gates, nested.BITS)) == bits
    assert float(nested.open_levels(gates, nested.BITS)) == 2**bits - 1


def share_bits(x, clip, gates, bits, signed, sample=None, values=None):
    """Values of `nested.share_bits`, with its gradients."""

    def quantize(x, clip, gates, values):
        options = {"sample": sample, "values": values}
        return nested.share_bits(x, clip, gates, bits, signed, **options)

    return F.custom_gradient(quantize, x, clip, gates, constants=[values])


def learned(x, clip, gates, signed, stride=1, bits=nested.BITS):
    """Values at the gates' bits, where gates learn from every `stride`-th row."""

    def sample(rows):
        return rows[::stride]

    values = nested.grid_values(sample(x), clip, bits, signed)
    return share_bits(x, clip, gates, bits, signed, sample=sample, values=values)


def gradients(function, *arrays):
    import tensorflow as tf

    tensors = [tf.constant(a, tf.float32) for a in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = function(*tensors)
    return [g.numpy() for g in tape.gradient(loss, tensors)]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("hard", [(0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("bits", [(2, 4, 8), (2, 3, 4), (3, 5, 6)])
def test_share_bits_gradients_match_the_papers_sum(signed, hard, bits):
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, (40, 30)).astype("float32")
    g = rng.normal(0, 1, x.shape).astype("float32")

    def loss(x, clip, gates):
        return ops.sum(learned(x, clip, gates, signed, bits=bits) * g)

    to_x, to_clip, to_gates = gradients(loss, x, 1.2, hard)

    if bits == nested.BITS:
        values = recursion(x, 1.2, signed)
    else:
        values = rounded_alone(x, 1.2, signed, bits)
    low, middle, high = (v.astype("float32") for v in values)
    first, second = hard
    value = low + first * (middle - low + second * (high - middle))
    inside = (x < 1.2) & (x > (-1.2 if signed else 0))
    np.testing.assert_array_equal(to_x, g * inside)
    edge = np.where(x > 0, value, value if signed else 0)
    expected = np.sum(g * np.where(inside, value - x, edge)) / 1.2
    np.testing.assert_allclose(to_clip, expected, rtol=1e-4)
    expected = [
        np.sum(g * (middle - low + second * (high - middle))),
        np.sum(g * first * (high - middle)),
    ]
    np.testing.assert_allclose(to_gates, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 7, 8, 9, 16])
def test_strided_gate_gradient_is_exact_for_equal_samples(batch):
    x, g = np.random.default_rng(4).normal(0, 1, (2, 1, 200)).astype("float32")
    x, g = np.tile(x, (batch, 1)), np.tile(g, (batch, 1))

    def loss(gates, stride):
        return ops.sum(learned(x, ops.ones(()), gates, True, stride) * g)

    (whole,) = gradients(lambda gates: loss(gates, 1), (1.0, 1.0))
    (part,) = gradients(lambda gates: loss(gates, 8), (1.0, 1.0))
    np.testing.assert_allclose(part, whole, rtol=1e-4, atol=1e-4)


def test_share_bits_has_no_gate_gradient_without_a_sample():
    x = np.random.default_rng(3).normal(0, 1, (40, 30)).astype("float32")

    def loss(gates):
        return ops.sum(share_bits(x, ops.ones(()), gates, nested.BITS, True) * x)

    (to_gates,) = gradients(loss, (1.0, 1.0))
    np.testing.assert_array_equal(to_gates, [0, 0])


def test_paper_grid_has_the_papers_values_and_no_zero():
    x = np.linspace(-2, 2, 1001).astype("float32")
    for gates, bits in (((0, 0), 2), ((1, 0), 4), ((1, 1), 8)):
        value = nested.paper_grid(
            x, ops.ones(()), ops.convert_to_tensor(gates, "float32"), nested.BITS
        )
        z = (np.clip(x, -1, 1) + 1) / 2
        expected = 2 * np.round(z * (2**bits - 1)) / (2**bits - 1) - 1
        np.testing.assert_allclose(value, expected, atol=1e-6)
        assert not (np.asarray(value) == 0).any()


@pytest.mark.parametrize("signed", [True, False])
def test_mean_errors_are_one_for_evenly_spread_values(signed):
    x = np.random.default_rng(0).uniform(-1 if signed else 0, 1, 200_000)
    errors = nested.mean_errors(x.astype("float32"), ops.ones(()), nested.BITS, signed)
    np.testing.assert_allclose(errors, [1, 1], rtol=0.02)
