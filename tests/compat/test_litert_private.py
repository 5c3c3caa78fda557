"""Undocumented APIs of LiteRT, flatbuffers, litert-quantizer and the converter."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from tfcompress.compat.litert_private import (
    ALIGNMENT,
    SharingBuilder,
    calibrate,
    keep_kernels,
    schema,
    sort_arguments,
)
from tfcompress.litert import float_tflite


def test_schema_reads_and_writes_a_converted_file():
    inputs = keras.Input((4,))
    content = float_tflite(keras.Model(inputs, kl.Dense(3)(inputs)))
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    (graph,) = model.subgraphs
    codes = [model.operatorCodes[x.opcodeIndex].builtinCode for x in graph.operators]
    assert codes == [schema.BuiltinOperator.FULLY_CONNECTED]
    kernel = graph.tensors[graph.operators[0].inputs[1]]
    assert kernel.type == schema.TensorType.FLOAT32
    assert kernel.shape.tolist() == [3, 4]
    assert model.buffers[kernel.buffer].data.size == 4 * 3 * 4

    builder = SharingBuilder(1)
    builder.Finish(model.Pack(builder), b"TFL3")
    back = schema.ModelT.InitFromObj(schema.Model.GetRootAs(builder.Output()))
    for before, after in zip(model.buffers, back.buffers, strict=True):
        np.testing.assert_array_equal(after.data, before.data)


def test_schema_has_the_types_of_low_bit_kernels():
    types = schema.TensorType
    assert [types.INT2, types.INT4, types.INT8] == [19, 17, 9]


def test_generated_code_writes_arrays_and_names_by_the_shared_methods():
    builder = SharingBuilder(1)
    scale = np.ones(3, np.float32)
    quantization = schema.QuantizationParametersT(scale=scale)
    schema.TensorT(name="x", quantization=quantization).Pack(builder)
    end = builder.Offset()
    assert builder.CreateNumpyVector(np.ones(3, np.float32)) < end
    assert builder.CreateString("x") < end
    assert builder.Offset() == end


def test_sharing_builder_aligns_byte_vectors():
    builder = SharingBuilder(1)
    arrays = [np.arange(n, dtype=np.uint8) + 100 + n for n in (3, 5, 17)]
    model = schema.ModelT(buffers=[schema.BufferT(data=x) for x in arrays])
    builder.Finish(model.Pack(builder), b"TFL3")
    content = bytes(builder.Output())
    assert [content.index(x.tobytes()) % ALIGNMENT for x in arrays] == [0, 0, 0]


def test_the_converter_sorts_arguments_by_name():
    inputs = [keras.Input((i + 1,)) for i in range(11)]
    content = float_tflite(keras.Model(inputs, kl.Concatenate()(inputs)))
    (signature,) = schema.ModelT.InitFromObj(
        schema.Model.GetRootAs(content)
    ).signatureDefs
    names = [entry.name.decode() for entry in signature.inputs]
    assert names == sorted(names)
    sort_arguments(signature.inputs)
    names = [entry.name.decode() for entry in signature.inputs]
    assert names == [f"input_{i}" for i in range(11)]


def test_calibrate_returns_limits_that_quantize_obeys():
    pytest.importorskip("litert_quantizer")
    from litert_quantizer import quantizer, recipe

    inputs = keras.Input((4,))
    content = float_tflite(keras.Model(inputs, kl.Dense(3)(inputs)))
    engine = quantizer.Quantizer(bytearray(content), recipe.static_wi8_ai8())
    x = np.array([[-1, 0, 1, 3]], np.float32)
    ranges = calibrate(engine, {"input_0": x})
    (name,) = [name for name, found in ranges.items() if found["max"] == 3]
    assert ranges[name]["min"] == -1

    ranges[name] = {
        key: np.full_like(ranges[name][key], value)
        for key, value in (("min", 0), ("max", 255 / 8))
    }
    content = bytes(engine.quantize(ranges).quantized_model)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    scales = [
        tensor.quantization.scale[0]
        for tensor in model.subgraphs[0].tensors
        if tensor.name.decode().startswith(name) and tensor.quantization is not None
    ]
    assert scales == pytest.approx([1 / 8])


def test_converter_has_the_option_that_keeps_kernels():
    converter = tf.lite.TFLiteConverter.from_concrete_functions([], None)
    before = vars(converter).copy()
    keep_kernels(converter)
    after = vars(converter)
    changed = {name for name in after if after[name] is not before.get(name, ...)}
    assert changed == {"_experimental_disable_fuse_mul_and_fc"} <= before.keys()
