"""Layers that merge steps with samples, and split them again."""

import keras
import numpy as np
import pytest

from tfcompress.layers.tensors.steps import MergeSteps, SplitSteps


@pytest.mark.parametrize("shape", [(4, 5), (None, 5), (None, None, 5), (4, None, 3, 5)])
@pytest.mark.parametrize("batch", [None, 2])
def test_split_steps_undo_merged_ones(shape, batch):
    inputs = keras.Input(batch_shape=(batch, *shape))
    merged = MergeSteps()(inputs)
    assert merged.shape[1:] == inputs.shape[2:]
    split = SplitSteps()(merged, inputs)
    assert split.shape == inputs.shape
    sizes = [size or 3 for size in shape]
    x = np.random.default_rng(0).normal(size=(2, *sizes)).astype("float32")
    samples, restored = keras.Model(inputs, [merged, split])(x)
    np.testing.assert_array_equal(samples, x.reshape(-1, *sizes[1:]))
    np.testing.assert_array_equal(restored, x)


def test_numbers_of_samples_are_known_where_batch_and_steps_are():
    assert MergeSteps().compute_output_shape((2, 3, 4)) == (6, 4)
    assert MergeSteps().compute_output_shape((None, 3, 4)) == (None, 4)
