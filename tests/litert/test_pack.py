"""Replacement of float kernels by packed integers."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from tests.litert.packed_models import make_packed
from tfcompress.graph.signature import input_names, output_names
from tfcompress.litert import float_tflite, predict
from tfcompress.litert.flatbuffer import operator_name, read
from tfcompress.litert.kernels import Kernel, packed_kernels
from tfcompress.litert.pack import pack_kernels


def packed_content(model, kernels=None):
    content, _ = pack_kernels(
        float_tflite(model),
        kernels or packed_kernels(model),
        input_names(model),
        output_names(model),
    )
    return content


def test_packed_tensors_have_types_names_and_scales_of_the_layers(digit_model):
    (graph,) = read(packed_content(digit_model)).subgraphs
    stored = {t.name.decode(): t for t in graph.tensors if t.quantization is not None}
    types = {name: tensor.type for name, tensor in stored.items()}
    assert types == {"first": 19, "middle": 17, "last": 9, "head": 19}
    for name, tensor in stored.items():
        layer = digit_model.get_layer(name)
        scale = np.ravel(layer.kernel_scale)
        if name == "last":  # the converter folds the normalization after it
            norm = digit_model.get_layer("norm")
            deviation = np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
            scale = scale * np.abs(norm.gamma.numpy()) / deviation
        np.testing.assert_allclose(tensor.quantization.scale, scale, rtol=1e-6)
        assert not tensor.quantization.zeroPoint.any()
        assert len(tensor.quantization.zeroPoint) == len(scale)


def test_packed_convolutions_read_the_result_of_dequantize(digit_model):
    model = read(packed_content(digit_model))
    (graph,) = model.subgraphs
    made_by = {
        operator.outputs[0]: operator_name(model, operator)
        for operator in graph.operators
    }
    for operator in graph.operators:
        if operator_name(model, operator) in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            assert made_by[operator.inputs[1]] == "DEQUANTIZE"
    (code,) = [c for c in model.operatorCodes if c.builtinCode == 6]
    assert code.version == 6  # per-channel and below a byte


def test_packed_file_has_no_float_kernel_and_no_metadata(digit_model):
    content = packed_content(digit_model)
    sizes = [b.data.size for b in read(content).buffers if b.data is not None]
    codes = [9 * 6 // 4 + 1, 9 * 6 // 2, 9 * 6 * 5, 5 * 10 // 4 + 1]
    biases = [4 * n for n in (6, 6, 5, 10)]
    axes = [8]  # of the pooling
    assert sorted(sizes) == sorted(codes + biases + axes)
    for word in (b"MLIR", b"min_runtime_version", b"CONVERSION", b"Relu", b"Pooling"):
        assert word not in content


def test_packed_file_keeps_names_and_order_of_inputs_and_outputs():
    inputs = [keras.Input((2,), name=f"in_{i}") for i in reversed(range(11))]
    outputs = [kl.Dense(i + 1)(x) for i, x in enumerate(inputs)]
    model = read(packed_content(make_packed(keras.Model(inputs, outputs))))
    (signature,), (graph,) = model.signatureDefs, model.subgraphs
    assert [x.name.decode() for x in signature.inputs] == [x.name for x in inputs]
    assert [x.name.decode() for x in signature.outputs] == [
        f"output_{i}" for i in range(11)
    ]
    assert [graph.tensors[i].shape[1] for i in graph.outputs] == list(range(1, 12))
    assert [graph.tensors[i].name for i in graph.inputs] == [
        x.name for x in signature.inputs
    ]


def test_packed_file_stores_equal_kernels_once():
    inputs = x = keras.Input((8, 8, 16))
    for i in range(6):
        x = kl.ReLU()(kl.Conv2D(16, 3, padding="same", name=f"zero{i}")(x))
    model = make_packed(keras.Model(inputs, x), bits=(8,))
    assert len(packed_content(model)) < 2 * 3 * 3 * 16 * 16


def test_packed_file_stores_a_kernel_for_each_folded_factor():
    inputs = keras.Input((8, 8, 4))
    shared = kl.Conv2D(4, 3, name="shared")
    branches = [kl.BatchNormalization()(shared(kl.ReLU()(inputs))), shared(inputs)]
    model = make_packed(keras.Model(inputs, kl.Add()(branches)))
    content = packed_content(model)
    names = [t.name for t in read(content).subgraphs[0].tensors]
    assert names.count(b"shared") == 2
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 4)).astype(np.float32)
    np.testing.assert_allclose(
        predict(content, x), model.predict(x, verbose=0), atol=1e-5
    )


def test_pack_kernels_names_a_missing_kernel(digit_model):
    other = Kernel("elsewhere", np.ones((9, 6), np.int8), np.ones(6, np.float32), 2)
    with pytest.raises(ValueError, match=r"\['elsewhere'\]"):
        packed_content(digit_model, [*packed_kernels(digit_model), other])
