"""Layers that read, attach and detach masks, in graphs and in files of Keras."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.compat import keras_private
from tfcompress.layers.tensors.masking import AttachMask, DetachMask, ReadMask

IDS = np.array([[1, 2, 0], [3, 0, 0]])


def embedded():
    ids = keras.Input((3,), dtype="int32")
    return ids, layers.Embedding(5, 4, mask_zero=True)(ids)


def test_read_mask_is_that_of_the_input():
    ids, x = embedded()
    model = keras.Model(ids, ReadMask(2)(x))
    np.testing.assert_array_equal(model(IDS), IDS != 0)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_read_mask_is_true_where_there_is_none(axes):
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, ReadMask(axes)(inputs))
    mask = keras.ops.convert_to_numpy(model(np.ones((2, 3, 4), "float32")))
    assert mask.dtype == bool and mask.shape == (2, 3, 4)[:axes] and mask.all()


def test_detached_mask_is_read_by_no_later_layer():
    ids, x = embedded()
    model = keras.Model(ids, [DetachMask()(x), x])
    detached, masked = model(IDS)
    np.testing.assert_array_equal(detached, masked)
    assert keras_private.mask_of(detached) is None
    assert keras_private.mask_of(masked) is not None


def test_attached_mask_is_read_by_later_layers_of_a_loaded_model(tmp_path):
    ids, x = embedded()
    attached = AttachMask()(layers.Reshape((3, 4))(DetachMask()(x)), ReadMask(2)(x))
    expected = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(ids, [layers.GlobalAveragePooling1D()(attached), expected])
    model.save(tmp_path / "model.keras")
    for one in (model, keras.models.load_model(tmp_path / "model.keras")):
        np.testing.assert_allclose(*one(IDS), atol=1e-6)
        np.testing.assert_allclose(*one.predict(IDS, verbose=0), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_mask_layers_keep_types(dtype):
    inputs = keras.Input((3, 4), dtype=keras.DTypePolicy(dtype).compute_dtype)
    x = layers.Masking(dtype=dtype)(inputs)
    for outputs in (
        DetachMask(dtype=dtype)(x),
        AttachMask(dtype=dtype)(x, x[..., 0] > 0),
    ):
        assert outputs.dtype == inputs.dtype
