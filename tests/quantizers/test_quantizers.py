import keras
import numpy as np
import pytest

from tfcompress.quantizers import Ternary, Uniform
from tfcompress.quantizers.quantizer import copy_quantizer

QUANTIZERS = [
    Ternary(),
    Ternary(sparsity=0.8, discrepancy=0.1),
    *(Uniform(bits) for bits in range(2, 9)),
]


def build(quantizer, shape, channel_axes=(-1,)):
    quantizer = copy_quantizer(quantizer)
    quantizer.channel_axes = channel_axes
    quantizer.build(shape)
    return quantizer


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: f"{q.name}{q.bits}")
@pytest.mark.parametrize(
    "shape, axes", [((3, 3, 5, 7), (-1,)), ((3, 3, 5, 2), (-2, -1))]
)
def test_codes_times_scale_equal_the_quantized_kernel(quantizer, shape, axes):
    quantizer = build(quantizer, shape, axes)
    w = np.random.default_rng(0).normal(size=shape).astype("float32")
    codes, scale = quantizer.encode(w)
    limit = 2 ** (quantizer.bits - 1) - 1
    assert codes.dtype == np.int8 and codes.shape == shape
    assert np.abs(codes).max() == limit
    expected = [n if i - 4 in axes else 1 for i, n in enumerate(shape)]
    assert list(scale.shape) == expected and scale.dtype == np.float32
    assert (scale > 0).all()
    np.testing.assert_array_equal(quantizer(w), codes * scale)


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: f"{q.name}{q.bits}")
def test_zero_channels_have_zero_codes_and_a_scale_of_1(quantizer):
    quantizer = build(quantizer, (6, 3))
    w = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    w[:, 1] = 0
    codes, scale = quantizer.encode(w)
    assert not codes[:, 1].any() and scale[0, 1] == 1
    np.testing.assert_array_equal(quantizer(w), codes * scale)


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: f"{q.name}{q.bits}")
def test_quantizer_config_round_trip(quantizer):
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(quantizer)
    )
    assert restored.get_config() == quantizer.get_config()
    assert not restored.built


def test_uniform_8_bit_error_is_at_most_half_a_step():
    w = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    quantizer = build(Uniform(8), w.shape)
    _, scale = quantizer.encode(w)
    assert (np.abs(quantizer(w) - w) <= scale / 2 * 1.00001).all()


def test_ternary_kernel_has_its_current_sparsity():
    w = np.random.default_rng(0).normal(size=(64, 64)).astype("float32")
    quantizer = build(Ternary(sparsity=0.9), w.shape)
    assert np.mean(quantizer.encode(w)[0] == 0) == pytest.approx(0.9, abs=1e-3)
    assert quantizer.unfinished() is None
    quantizer.current_sparsity.assign(0.5)
    assert np.mean(quantizer.encode(w)[0] == 0) == pytest.approx(0.5, abs=1e-3)
    assert "is 0.500 and has not reached 0.9" in quantizer.unfinished()


def test_frozen_ternary_zeros_stay_while_signs_change():
    w = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    quantizer = build(Ternary(), w.shape)
    before, _ = quantizer.encode(w)
    quantizer.freeze(w)
    moved = np.random.default_rng(1).normal(size=w.shape).astype("float32")
    frozen, _ = quantizer.encode(moved)
    np.testing.assert_array_equal(frozen, np.sign(moved) * np.abs(before))
    quantizer.unfreeze()
    assert (quantizer.encode(moved)[0] != frozen).any()


def test_held_ternary_threshold_decides_until_it_is_refreshed():
    w, moved = np.random.default_rng(0).normal(size=(2, 64, 64)).astype("float32")
    quantizer, live = (build(Ternary(0.9), w.shape) for _ in range(2))
    quantizer.holds_threshold = True
    quantizer.refresh(w)
    np.testing.assert_array_equal(quantizer.encode(w)[0], live.encode(w)[0])
    # A longer filter has the same zeros, and another kernel those of the threshold.
    np.testing.assert_array_equal(quantizer.encode(3 * w)[0], live.encode(w)[0])
    share = np.abs(moved) / np.linalg.norm(moved, axis=0)
    kept = share >= np.array(quantizer.threshold)
    np.testing.assert_array_equal(quantizer.encode(moved)[0], np.sign(moved) * kept)
    quantizer.refresh(moved)
    np.testing.assert_array_equal(quantizer.encode(moved)[0], live.encode(moved)[0])


def test_ternary_threshold_without_a_sparsity_is_never_held():
    w, moved = np.random.default_rng(0).normal(size=(2, 64, 64)).astype("float32")
    quantizer, live = (build(Ternary(), w.shape) for _ in range(2))
    quantizer.holds_threshold = True
    quantizer.refresh(w)
    np.testing.assert_array_equal(quantizer.encode(moved)[0], live.encode(moved)[0])
    kept = np.abs(moved) >= 0.7 * np.abs(moved).mean(axis=0)
    np.testing.assert_array_equal(quantizer.encode(moved)[0], np.sign(moved) * kept)


def test_held_ternary_threshold_empties_no_filter():
    w = np.random.default_rng(0).normal(size=(9, 50)).astype("float32")
    quantizer = build(Ternary(0.9), w.shape)
    quantizer.holds_threshold = True
    quantizer.refresh(w)
    flat = np.full_like(w, 0.1)
    flat[0] = 0.11
    codes, _ = quantizer.encode(flat)
    assert (codes[0] == 1).all() and (np.abs(codes).sum(axis=0) >= 1).all()


def test_ternary_discrepancy_is_a_loss_of_one_minus_the_mean_cosine():
    w = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    quantizer = build(Ternary(discrepancy=0.5), w.shape)
    quantizer(w, training=True)
    codes, _ = quantizer.encode(w)
    lengths = np.linalg.norm(w, axis=0) * np.linalg.norm(codes, axis=0)
    expected = 0.5 * np.mean(1 - np.sum(w * codes, axis=0) / lengths)
    np.testing.assert_allclose(quantizer.losses, [expected], rtol=1e-5)


@pytest.mark.parametrize("sparsity", [0, 1, -0.5, 1.5, float("nan")])
def test_ternary_refuses_a_sparsity_out_of_range(sparsity):
    with pytest.raises(ValueError, match=r"zero weights in \(0, 1\).*Received"):
        Ternary(sparsity=sparsity)


@pytest.mark.parametrize("discrepancy", [-1, float("nan"), float("inf")])
def test_ternary_refuses_a_discrepancy_out_of_range(discrepancy):
    with pytest.raises(ValueError, match="number from 0 to 1000"):
        Ternary(discrepancy=discrepancy)


@pytest.mark.parametrize("bits", [1, 9, 4.5])
def test_uniform_refuses_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="from 2 to 8"):
        Uniform(bits)


@pytest.mark.parametrize("shape", [(3, 3, 4, 700), (3, 3, 600, 1), (30, 5)])
def test_natural_sparsity_is_the_share_of_zeros_without_a_sparsity(shape):
    quantizer = Ternary()
    quantizer.channel_axes = (-2, -1) if shape[-1] == 1 else (-1,)
    quantizer.build(shape)
    w = np.random.default_rng(0).normal(size=shape).astype("float32")
    codes, _ = quantizer.encode(w)
    assert quantizer.natural_sparsity(w) == pytest.approx((codes == 0).mean())
