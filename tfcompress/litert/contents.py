"""Constants of a `.tflite`, with their bytes."""

from dataclasses import dataclass

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import NATIVE_BITS
from tfcompress.litert.runtime import File, read_file
from tfcompress.quantizers.packing import unpack

# Roles of the inputs of operators that read kernels, by position.
ROLES = {1: "kernel", 2: "bias"}
TYPES = {
    value: name
    for name, value in vars(schema.TensorType).items()
    if isinstance(value, int)
}
FLOATS = {"FLOAT16": np.float16, "FLOAT32": np.float32, "FLOAT64": np.float64}


@dataclass(frozen=True)
class Constant:
    """Constant tensor of a file.

    Attributes:
        name: str. Name in the file, or "" if it has none.
        read_by: str. Name of the first operator that reads it, directly or decoded.
        role: "kernel" or "bias" of a convolution or fully connected operator, or "".
        type: str. Tensor type, such as "INT2"; of kernels that TensorFlow Lite Micro
            decodes the encoding and the bits of an element, such as "Huffman 1.5 bits".
        shape: tuple of ints.
        zeros: float or None. Share of elements that are zero; None for other types
            than floats, INT2, INT4 and INT8, and encoded kernels.
        bytes: int. Bytes of its elements as they are stored, with the tables of
            an encoding.
        scale_bytes: int. Bytes of its scales.
    """

    name: str
    read_by: str
    role: str
    type: str
    shape: tuple[int, ...]
    zeros: float | None
    bytes: int
    scale_bytes: int


def constants(path: File) -> list[Constant]:
    """Reads the constant tensors of a file, in the order of the operators.

    Args:
        path: a `.tflite`, or its content as bytes.

    Returns:
        List of `Constant`. A tensor that several operators read is listed once.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no `.tflite` file, or a damaged one. LiteRT does not run.
    """
    model = flatbuffer.read(read_file(path))
    return [found for graph in model.subgraphs for found in _of_graph(model, graph)]


def _of_graph(model, graph):
    decoded = {
        operator.outputs[0]: operator.inputs[0]
        for operator in graph.operators
        if flatbuffer.operator_name(model, operator) == "DEQUANTIZE"
    }
    # Not at the top: `tfcompress.micro` imports this folder.
    from tfcompress.micro.contents import encoded_constants

    encoded = encoded_constants(model, graph)
    sources, seen = set(decoded.values()), set()
    for operator in graph.operators:
        reader = flatbuffer.operator_name(model, operator)
        if any(index in encoded for index in operator.outputs):
            continue  # listed with its reader, as the next ones
        if reader == "DEQUANTIZE" and operator.inputs[0] in sources:
            continue  # listed with the operator that reads the decoded tensor
        for place, index in enumerate(operator.inputs):
            index = decoded.get(index, index)
            if index < 0 or index in seen:
                continue
            seen.add(index)
            role = ROLES.get(place, "") if reader in NATIVE_BITS else ""
            tensor = graph.tensors[index]
            if index in encoded:
                yield _constant(tensor, reader, role, *encoded[index])
            elif flatbuffer.constant(model, tensor) is not None:
                yield _constant(tensor, reader, role, *_stored(model, tensor))


def _stored(model, tensor):
    """Returns `(type, zeros, bytes)` of a constant."""
    data = flatbuffer.constant(model, tensor)
    bits, type_name = flatbuffer.TENSOR_BITS.get(tensor.type), TYPES[tensor.type]
    zeros = None
    if bits:
        zeros = float((unpack(data, bits, int(np.prod(tensor.shape))) == 0).mean())
    elif type_name in FLOATS:
        zeros = float((data.view(FLOATS[type_name]) == 0).mean())
    return type_name, zeros, len(data)


def _constant(tensor, reader, role, type_name, zeros, size):
    shape = tuple(int(x) for x in np.atleast_1d(tensor.shape))
    scale = tensor.quantization.scale if tensor.quantization else None
    return Constant(
        name=flatbuffer.tensor_name(tensor),
        read_by=reader,
        role=role,
        type=type_name,
        shape=shape,
        zeros=zeros,
        bytes=size,
        scale_bytes=0 if scale is None else np.asarray(scale).nbytes,
    )
