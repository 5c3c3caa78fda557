"""Tables that are looked up in few bits."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.layers import PackedEmbedding
from tfcompress.litert import flatbuffer
from tfcompress.litert.convert import float_tflite
from tfcompress.litert.kernels import packed_kernels
from tfcompress.litert.look_up import tables
from tfcompress.litert.pack import pack_kernels
from tfcompress.litert.runtime import Runner
from tfcompress.litert.stored import check_written, kernel_tensors, recognize

ROWS = 30


def embedding(bits, columns, shape=(6,), dtype="int32"):
    words = keras.Input(shape, dtype=dtype)
    layer = PackedEmbedding(ROWS, columns, kernel_bits=bits, name="table")
    model = keras.Model(words, layer(words))
    rng = np.random.default_rng(bits)
    codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (ROWS, columns))
    layer.set_kernel(codes, rng.uniform(0.1, 1.0, (ROWS, 1)))
    return model, layer


def packed(model):
    kernels = packed_kernels(model)
    names = [f"x_{i}" for i, _ in enumerate(model.inputs)]
    content, matches = pack_kernels(float_tflite(model), kernels, names, ["y"])
    return content, kernels, matches


def operators(content):
    model = flatbuffer.read(content)
    return [
        flatbuffer.operator_name(model, operator)
        for graph in model.subgraphs
        for operator in graph.operators
    ]


@pytest.mark.parametrize("shape", [(6,), (2, 3), (), (None,)])
@pytest.mark.parametrize("bits, columns, stored", [
    (8, 5, 8), (4, 6, 4), (4, 5, 8), (2, 8, 2), (2, 6, 4), (2, 5, 8), (3, 6, 4),
])  # fmt: skip
def test_rows_are_codes_times_scales_and_no_other_is_decoded(
    bits, columns, stored, shape
):
    model, layer = embedding(bits, columns, shape)
    content, kernels, matches = packed(model)
    tensors = kernel_tensors(content)
    check_written(tensors, matches)
    (row,) = recognize(tensors, kernels)
    (tensor,) = tensors
    is_decoded = stored == 2 and None in shape  # RESHAPE has one free size at most
    assert ("DEQUANTIZE" in operators(content)) == is_decoded
    assert tensor.looked_up != is_decoded
    assert (row["type"], row["shape"]) == (f"INT{stored}", [ROWS, columns])
    np.testing.assert_array_equal(tensor.codes(), layer.codes)
    scale = keras.ops.convert_to_numpy(layer.kernel_scale)
    for count in (1, 3):
        size = (count, *(n or 4 for n in shape))
        words = np.random.default_rng(0).integers(ROWS, size=size).astype("int32")
        (received,) = Runner(content)([words])
        expected = layer.codes.astype("float32") * scale
        np.testing.assert_array_equal(received, expected[words])


def test_table_that_several_inputs_look_up_is_stored_once():
    words = [keras.Input((n,), dtype="int32") for n in (3, 4)]
    _, layer = embedding(4, 6)
    model = keras.Model(words, layers.Concatenate(axis=1)([layer(x) for x in words]))
    content, kernels, _ = packed(model)
    (tensor,) = kernel_tensors(content)
    np.testing.assert_array_equal(tensor.codes(), layer.codes)
    x = [np.array([[1, 2, 3]], "int32"), np.array([[29, 0, 1, 2]], "int32")]
    np.testing.assert_array_equal(Runner(content)(x)[0], model(x))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_scale_that_is_not_positive_is_refused(bits):
    model, _ = embedding(bits, 8)
    parsed = flatbuffer.read(packed(model)[0])
    (table,) = tables(parsed, parsed.subgraphs[0])
    damaged = table.scale.copy()
    damaged[3] = np.nan
    for buffer in parsed.buffers:
        data = buffer.data
        if data is not None and bytes(data) == table.scale.tobytes():
            buffer.data = damaged.view(np.uint8)
    with pytest.raises(ValueError, match="'table'.*a positive scale per row"):
        kernel_tensors(flatbuffer.write(parsed))
