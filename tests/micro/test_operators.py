"""Table of the runtime's operators, and the layers that are named in errors."""

import re

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.micro.decoding import add_code, empty_model
from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.micro import operators
from tfcompress.micro.operators import SUPPORTED, resolver_methods
from tfcompress.micro.runtime import MicroError, MicroRuntime

# Messages about operators that the runtime does not know, or only by a custom code.
NOT_FOUND = re.compile("find op for builtin|no custom_code")


def one_operator(builtin):
    """File with one operator from one int8 value to another."""
    model = empty_model()
    (graph,) = model.subgraphs
    for _ in range(2):
        shape = np.array([1], np.int32)
        tensor = schema.TensorT(shape=shape, type=schema.TensorType.INT8, buffer=0)
        flatbuffer.append_tensor(graph, tensor)
    graph.inputs, graph.outputs = np.array([0], np.int32), np.array([1], np.int32)
    operator = schema.OperatorT(
        opcodeIndex=add_code(model, builtin), inputs=graph.inputs, outputs=graph.outputs
    )
    graph.operators = [operator]
    return flatbuffer.write(model)


def test_table_has_the_operators_of_the_installed_runtime(runtime):
    """Fails when a version of the runtime has more operators, or fewer."""
    found = set()
    for builtin, name in flatbuffer.OPERATOR_NAMES.items():
        try:
            runtime("load", "one", one_operator(builtin), 100_000)
        except MicroError as error:
            if NOT_FOUND.search(error.messages):
                continue
            if "ended its process" in str(error):  # it read an input that is not there
                runtime = MicroRuntime()
        found.add(name)
    assert found == SUPPORTED


@pytest.mark.parametrize("name, method", [
    ("CONV_2D", "AddConv2D"), ("DEPTHWISE_CONV_2D", "AddDepthwiseConv2D"),
    ("FULLY_CONNECTED", "AddFullyConnected"), ("MAX_POOL_2D", "AddMaxPool2D"),
    ("BATCH_TO_SPACE_ND", "AddBatchToSpaceNd"), ("PADV2", "AddPadV2"),
    ("BATCH_MATMUL", "AddBatchMatMul"), ("SELECT_V2", "AddSelectV2"),
    ("RELU6", "AddRelu6"), ("LOG_SOFTMAX", "AddLogSoftmax"),
])  # fmt: skip
def test_resolver_methods_have_the_names_of_the_runtime(name, method):
    content = one_operator(getattr(schema.BuiltinOperator, name))
    assert resolver_methods(content) == [method]


def test_layers_are_found_in_the_names_of_the_converter():
    known = {"last", "inner/conv", "norm_1", "dense"}
    names = {
        "norm_1/mul;last_1/BiasAdd": "norm_1",
        "model/inner/conv/Relu": "inner/conv",
        "dense_3/MatMul": "dense",
        "elsewhere/MatMul": None,
    }
    assert {name: operators._layer(name, known) for name in names} == names


def test_tokens_of_int64_are_refused_with_a_remedy_that_works(tmp_path):
    inputs = keras.Input((6,), dtype="int64")
    x = keras.layers.Flatten()(keras.layers.Embedding(10, 4)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    options = {"target": "micro", "representative_data": np.ones((2, 6))}
    with pytest.raises(ValueError, match="inputs of int32 in place of int64"):
        tfc.export(model, tmp_path / "model.tflite", **options)
    inputs = keras.Input((6,), dtype="int32")
    other = keras.models.clone_model(model, input_tensors=inputs)
    other.set_weights(model.get_weights())
    tfc.export(other, tmp_path / "model.tflite", **options)
