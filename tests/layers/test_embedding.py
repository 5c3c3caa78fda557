"""Embeddings with quantized and packed tables."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress import quantizers
from tfcompress.layers import (
    PackedEmbedding,
    PackedReversibleEmbedding,
    QuantEmbedding,
    QuantReversibleEmbedding,
)

ROWS, COLUMNS = 11, 5
WORDS = np.array([[0, 3, 10], [7, 7, 1]])


def packed(kind, bits, **arguments):
    layer = kind(ROWS, COLUMNS, kernel_bits=bits, **arguments)
    layer.build()
    rng = np.random.default_rng(0)
    codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (ROWS, COLUMNS))
    scale = rng.uniform(0.1, 1.0, (ROWS, 1)).astype("float32")
    layer.set_kernel(codes, scale)
    return layer, codes * scale


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", [PackedEmbedding, PackedReversibleEmbedding])
def test_packed_embedding_looks_up_codes_times_scales_of_rows(kind, bits):
    layer, table = packed(kind, bits)
    table = table.astype("float32")
    np.testing.assert_array_equal(layer.embeddings, table)
    np.testing.assert_array_equal(layer(WORDS), table[WORDS])
    np.testing.assert_array_equal(layer(-WORDS[1:]), table[-WORDS[1:]])


def test_packed_embedding_does_not_decode_its_table(monkeypatch):
    layer, _ = packed(PackedEmbedding, 2)
    monkeypatch.setattr(PackedEmbedding, "compute_kernel", None)
    assert layer(WORDS).shape == (*WORDS.shape, COLUMNS)


def test_both_directions_share_the_packed_table():
    layer, table = packed(PackedReversibleEmbedding, 4)
    x = np.random.default_rng(1).normal(size=(2, COLUMNS)).astype("float32")
    np.testing.assert_allclose(layer(x, reverse=True), x @ table.T, rtol=1e-5)


@pytest.mark.parametrize("kind", [layers.Embedding, layers.ReversibleEmbedding])
@pytest.mark.parametrize("form", ["quantized", "packed"])
def test_masks_are_those_of_keras(kind, form):
    reversible = kind is layers.ReversibleEmbedding
    if form == "packed":
        kind = PackedReversibleEmbedding if reversible else PackedEmbedding
        layer, _ = packed(kind, 4, mask_zero=True)
    else:
        kind = QuantReversibleEmbedding if reversible else QuantEmbedding
        layer = kind(
            ROWS, COLUMNS, mask_zero=True, kernel_quantizer=quantizers.Uniform(4)
        )
    pooled = layers.GlobalAveragePooling1D()(layer(WORDS))
    rows = np.asarray(keras.ops.convert_to_numpy(layer(WORDS)))
    np.testing.assert_allclose(pooled[0], rows[0, 1:].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("kind", [QuantEmbedding, QuantReversibleEmbedding])
def test_gradients_reach_the_rows_that_are_looked_up_and_no_others(kind):
    layer = kind(ROWS, COLUMNS, kernel_quantizer=quantizers.Uniform(4))
    model = keras.Sequential([keras.Input((3,), dtype="int32"), layer])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    before = keras.ops.convert_to_numpy(layer.latent_kernel)
    target = np.full((2, 3, COLUMNS), 5.0, "float32")
    model.fit(WORDS, target, verbose=0)
    moved = np.abs(keras.ops.convert_to_numpy(layer.latent_kernel) - before) > 0
    assert set(np.flatnonzero(moved.any(axis=1))) == set(np.unique(WORDS))
    assert moved[np.unique(WORDS)].all()
    # Row 7 is read twice.
    steps = (keras.ops.convert_to_numpy(layer.latent_kernel) - before).mean(axis=1)
    np.testing.assert_allclose(steps[7] / steps[3], 2.0, rtol=0.05)


def test_quantized_embedding_refuses_a_quantizer_of_indices():
    with pytest.raises(ValueError, match="takes input_quantizer=None"):
        QuantEmbedding(
            ROWS, COLUMNS, input_quantizer=quantizers.BitSharingActivation((8,))
        )
