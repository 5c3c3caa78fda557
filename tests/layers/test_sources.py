"""Layers whose outputs do not depend on the values of their input."""

import keras
import numpy as np
import pytest

from tfcompress.layers.tensors.sources import Constant, OwnWeight, WithSizes


@pytest.mark.parametrize("dtype", ["int32", "float32", "bool"])
def test_constant_keeps_its_values_and_its_type_in_a_file(dtype, tmp_path):
    value = np.array([[0, 1, 2]]).astype(dtype)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Constant(value, dtype="mixed_bfloat16")(inputs))
    model.save(tmp_path / "model.keras")
    for one in (model, keras.models.load_model(tmp_path / "model.keras")):
        outputs = keras.ops.convert_to_numpy(one(np.ones((2, 4), "float32")))
        assert outputs.dtype == dtype
        np.testing.assert_array_equal(outputs, value)


def test_own_weight_of_a_variable_has_that_variable_and_copies_have_another():
    variable = keras.Variable(np.ones(3, "float32"), trainable=False, name="scale")
    layer = OwnWeight.of(variable, name="scale", trainable=False)
    assert layer.weights == [variable]
    copy = OwnWeight.from_config(layer.get_config())
    copy.build((None, 2))
    assert copy.weight is not variable and copy.weight.shape == (3,)
    assert not copy.trainable


@pytest.mark.parametrize(
    ("function", "arguments", "shape"),
    [
        ("zeros", [[[{"size_of": 0, "axis": 0, "times": 2}, 5]], {}], (None, 5)),
        ("arange", [[{"size_of": 0, "axis": 1, "times": 1}], {}], (None,)),
        ("arange", [[{"size_of": 0, "axis": 2, "times": 1}], {}], (4,)),
        (
            "reshape",
            [
                [{"tensor": 0}],
                {"newshape": [{"size_of": 0, "axis": 0, "times": 1}, -1]},
            ],
            (None, None),
        ),
    ],
)
def test_shape_of_a_function_of_sizes_is_open_where_they_are(
    function, arguments, shape
):
    inputs = keras.Input((None, 4))
    outputs = WithSizes(function, arguments)([inputs])
    assert outputs.shape == shape
    values = keras.Model(inputs, outputs)(np.ones((2, 3, 4), "float32"))
    sizes = zip(values.shape, outputs.shape, strict=True)
    assert all(expected in (None, size) for size, expected in sizes)
