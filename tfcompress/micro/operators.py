"""Operators of TensorFlow Lite Micro, and the layers that need others."""

from collections.abc import Sequence

import keras

from tfcompress.arguments import listed
from tfcompress.compat.litert_private import schema
from tfcompress.graph.graph import Graph
from tfcompress.litert import flatbuffer

# Custom code of the operator that decodes tensors.
DECODE = "TFLM_DECODE"

# Builtin operators that tflite-micro 0.dev20261023 registers.
_NAMES = """
    ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL
    BATCH_TO_SPACE_ND BROADCAST_ARGS BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION
    CONV_2D COS CUMSUM DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV
    DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR
    FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER GREATER_EQUAL
    HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG
    LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN
    MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE
    REDUCE_ALL REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR
    RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX
    SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE
    SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV
    UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE
"""
SUPPORTED = frozenset(_NAMES.split())
# Methods of a MicroMutableOpResolver with other names than the operator's in one word.
_METHODS = {
    DECODE: "AddDecode",
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    "PADV2": "AddPadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}
# An embedding of int64 tokens has operators that one of int32 tokens lacks.
_INT64_HINT = (
    "Give the model inputs of int32 in place of int64, by keras.models.clone_model("
    "model, input_tensors=keras.Input(shape, dtype='int32')) and set_weights("
    "model.get_weights()). If operators are still missing: "
)


def operator_name(model: schema.ModelT, operator: schema.OperatorT) -> str:
    """Returns the name of an operator, such as "CONV_2D", or a custom one's code."""
    name = flatbuffer.operator_name(model, operator)
    if name != "CUSTOM":
        return name
    code = model.operatorCodes[operator.opcodeIndex].customCode or b""
    return code.decode(errors="replace")


def resolver_methods(content: bytes) -> list[str]:
    """Returns the methods by which a MicroMutableOpResolver gets a file's operators."""
    model = flatbuffer.read(content)
    names = {
        operator_name(model, operator)
        for graph in model.subgraphs
        for operator in graph.operators
    }
    return sorted(_METHODS.get(name) or _method(name) for name in names)


def _method(name):
    words = (word if word[0].isdigit() else word.title() for word in name.split("_"))
    return "Add" + "".join(words)


def check_supported(model: schema.ModelT, layers: Sequence[str]) -> None:
    """Checks that TensorFlow Lite Micro has the operators of a file.

    Args:
        model: the parsed file.
        layers: layer of each operator, as `layer_names` returns them.

    Raises:
        ValueError: if an operator is missing there.
    """
    missing = [
        (operator_name(model, operator), layer)
        for operator, layer in zip(model.subgraphs[0].operators, layers, strict=True)
        if operator_name(model, operator) not in SUPPORTED
    ]
    if missing:
        found = listed([f"{name} of '{layer}'" for name, layer in missing])
        graph = model.subgraphs[0]
        types = {graph.tensors[index].type for index in graph.inputs}
        raise ValueError(
            "Operators that TensorFlow Lite Micro has are expected. Received: "
            f"{found}. {_INT64_HINT * (schema.TensorType.INT64 in types)}Replace these "
            "layers by others, or let the model end before them, and compute them on "
            "the device yourself."
        )


def layer_names(file: schema.ModelT, model: keras.Model) -> list[str]:
    """Returns the layer that each operator of a file's graph belongs to.

    Operators of unknown layers get the name of the tensor that they compute.

    Args:
        file: the parsed file, with the converter's names.
        model: the Keras model.
    """
    graph = Graph(model)
    known = {call.name for call in graph.calls}
    makers = {id(x): call.name for call in graph.calls for x in call.outputs}
    outputs = [makers.get(id(x)) for x in graph.outputs]
    subgraph = file.subgraphs[0]
    of_outputs = dict(zip(subgraph.outputs.tolist(), outputs, strict=True))
    found = []
    for operator in subgraph.operators:
        index = int(operator.outputs[0])
        name = flatbuffer.tensor_name(subgraph.tensors[index])
        found.append(of_outputs.get(index) or _layer(name, known) or name)
    return found


def _layer(name, known):
    """The first known layer in a name such as "norm_1/mul;last_1/BiasAdd"."""
    for path in name.split(";"):
        words = path.split("/")
        for last in range(len(words), 0, -1):
            for first in range(last):
                layer = "/".join(words[first:last])
                # The copy of the model that is converted numbers equal names.
                for candidate in (layer, layer.rpartition("_")[0]):
                    if candidate in known:
                        return candidate
    return None
