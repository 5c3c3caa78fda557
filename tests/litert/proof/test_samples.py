"""Samples for checks and ranges: batches, types and values."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfcompress as tfc
from tests.litert.packed_models import make_packed
from tfcompress.litert.proof.samples import Samples


@pytest.mark.parametrize(
    ("shapes", "size"),
    [
        ([(28, 28, 1)], 128),
        ([(224, 224, 3)], 13),
        ([(224, 224, 3), (224, 224, 3)], 6),
        ([(2000, 2000, 3)], 1),
        ([(None, None, 3)], 128),
    ],
)
def test_samples_come_in_smaller_batches_if_they_are_large(shapes, size):
    inputs = [keras.Input(shape) for shape in shapes]
    model = keras.Model(inputs, [kl.Identity()(x) for x in inputs])
    zero = np.zeros((), np.float32)
    data = [
        np.broadcast_to(zero, (size + 1, *(axis or 8 for axis in shape)))
        for shape in shapes
    ]
    samples = Samples(model, data)
    assert [len(batch[0]) for batch in samples] == [size, 1]
    assert samples.batches() == 2


def identity(dtype):
    inputs = keras.Input((2,), dtype=dtype, name="sensor")
    return keras.Model(inputs, kl.Identity()(inputs))


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("float32", np.array([[1.5, 0.1]])),
        ("float32", np.array([[1, 255]], np.uint8)),
        ("float32", np.array([[True, False]])),
        ("float16", np.array([[1.5, 3.0]], np.float32)),
        ("int32", np.array([[7, -7]], np.int64)),
        ("int32", np.array([[7.0, -7.0]])),
        ("uint8", np.array([[0, 255]], np.int32)),
        ("float64", np.array([[1e300, 0.0]])),
        ("bfloat16", np.array([[1.5, 3.0]], np.float32)),
        ("bool", np.array([[0, 1]])),
    ],
)
def test_numbers_are_converted_to_the_type_of_the_input(dtype, data):
    ((batch,),) = Samples(identity(dtype), data)
    assert batch.dtype == dtype
    np.testing.assert_allclose(batch.astype("float64"), data, rtol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "data", "received"),
    [
        ("float32", np.array([[1.0, np.nan]]), "1 others, such as nan"),
        ("float32", np.array([[np.inf, -np.inf]], np.float32), "2 others, such as inf"),
        ("float32", np.array([[1e300, 0.0]]), "such as 1e\\+300"),
        ("float16", np.array([[1e6, 0.0]], np.float32), "such as 1000000"),
        ("int32", np.array([[0.5, 1.0]]), "type float64 that it cannot hold"),
        ("int32", np.array([[np.nan, 1.0]]), "type float64 that it cannot hold"),
        ("int32", np.array([[2**40, 1]]), "type int64 that it cannot hold"),
        ("uint8", np.array([[-1, 1]]), "type int64 that it cannot hold"),
        ("bool", np.array([[2, 1]]), "type int64 that it cannot hold"),
        ("float32", np.array([["a", "b"]]), "type <U1 that it cannot hold"),
        ("float32", np.array([[1j, 1.0]]), "type complex128 that it cannot hold"),
        ("float32", np.array([[None, 1.0]]), "type object that it cannot hold"),
    ],
)
def test_values_that_the_input_cannot_hold_are_refused(dtype, data, received):
    with pytest.raises(ValueError, match=f"'sensor'. Received: .*{received}"):
        list(Samples(identity(dtype), data))


def test_samples_that_fill_no_batch_of_a_fixed_size_are_refused_first(tmp_path):
    inputs = keras.Input(batch_shape=(4, 6))
    model = make_packed(keras.Model(inputs, keras.layers.Dense(3)(inputs)), bits=(8,))
    with pytest.raises(ValueError, match=r"\(2, 6\).*a multiple of 4 samples"):
        tfc.export(model, tmp_path / "model.tflite", np.zeros((10, 6)))
    assert not list(tmp_path.iterdir())


def test_samples_after_the_first_batch_are_checked():
    data = np.zeros((300, 2))
    data[299, 0] = np.nan
    with pytest.raises(ValueError, match="`representative_data` should hold finite"):
        list(Samples(identity("float32"), data, "representative_data"))
