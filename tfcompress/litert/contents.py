"""What a `.tflite` spends its bytes on."""

from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import NATIVE_BITS
from tfcompress.litert.runtime import Runner, read_file
from tfcompress.quantizers.packing import unpack

ROLES = {1: "kernel", 2: "bias"}
TYPES = {
    value: name
    for name, value in vars(schema.TensorType).items()
    if isinstance(value, int)
}
FLOATS = {"FLOAT16": np.float16, "FLOAT32": np.float32, "FLOAT64": np.float64}


@dataclass(frozen=True)
class Constant:
    """One constant tensor.

    Attributes:
        name: its name in the file, or "" if it has none.
        read_by: name of the first operator that reads it, or reads it decoded.
        role: "kernel" or "bias" of a convolution or a fully connected operator, or "".
        type: such as "INT2".
        shape: tuple of ints.
        zeros: share of elements that are zero, or None where that means nothing.
        bytes: of its elements as they are stored.
        scale_bytes: of its scales.
    """

    name: str
    read_by: str
    role: str
    type: str
    shape: tuple
    zeros: float | None
    bytes: int
    scale_bytes: int


def constants(path):
    """Reads the constant tensors of a file, in the order of the operators.

    Args:
        path: a `.tflite`, or its content as bytes.

    Returns:
        List of `Constant`; one that several operators read is there once.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if LiteRT refuses it.
    """
    Runner(path)  # it verifies the structure, which Python's reader does not
    model = flatbuffer.read(read_file(path))
    found = []
    for graph in model.subgraphs:
        decoded = {
            operator.outputs[0]: operator.inputs[0]
            for operator in graph.operators
            if flatbuffer.operator_name(model, operator) == "DEQUANTIZE"
        }
        seen = set()
        for operator in graph.operators:
            reader = flatbuffer.operator_name(model, operator)
            if reader == "DEQUANTIZE" and operator.inputs[0] in decoded.values():
                continue  # it appears where it is used
            for place, index in enumerate(operator.inputs):
                index = decoded.get(index, index)
                if index >= 0 and index not in seen:
                    seen.add(index)
                    role = ROLES.get(place, "") if reader in NATIVE_BITS else ""
                    tensor = graph.tensors[index]
                    if flatbuffer.constant(model, tensor) is not None:
                        found.append(_constant(model, tensor, reader, role))
    return found


def _constant(model, tensor, reader, role):
    data = flatbuffer.constant(model, tensor)
    shape = tuple(int(size) for size in np.atleast_1d(tensor.shape))
    bits, type_name = flatbuffer.TENSOR_BITS.get(tensor.type), TYPES[tensor.type]
    zeros = None
    if bits:
        zeros = float((unpack(data, bits, int(np.prod(shape))) == 0).mean())
    elif type_name in FLOATS:
        zeros = float((data.view(FLOATS[type_name]) == 0).mean())
    scale = tensor.quantization.scale if tensor.quantization else None
    return Constant(
        name=(tensor.name or b"").decode(errors="replace"),
        read_by=reader,
        role=role,
        type=type_name,
        shape=shape,
        zeros=zeros,
        bytes=len(data),
        scale_bytes=0 if scale is None else np.asarray(scale).nbytes,
    )
