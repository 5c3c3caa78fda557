"""Kernels of an int8 file, and the encoding of each."""

import dataclasses

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import DATA_AND_BIAS


@dataclasses.dataclass(frozen=True)
class StoredKernel:
    """INT8 kernel that an operator reads.

    Attributes:
        operator: int. Position of the operator in the graph.
        reader: str. Name of the operator.
        name: str. Name of the kernel's tensor.
        codes: int8 array.
        axis: int. Axis of channels.
        channels: int. Number of scales; 1 for one scale of all channels.
    """

    operator: int
    reader: str
    name: str
    codes: np.ndarray
    axis: int
    channels: int


def stored_kernels(model: schema.ModelT) -> list[StoredKernel]:
    """Lists the constant INT8 kernels of a file, in the order of their operators."""
    graph, found = model.subgraphs[0], []
    for position, operator in enumerate(graph.operators):
        reader = flatbuffer.operator_name(model, operator)
        if reader not in DATA_AND_BIAS:
            continue
        tensor = graph.tensors[operator.inputs[1]]
        data = flatbuffer.constant(model, tensor)
        if data is None or tensor.type != schema.TensorType.INT8:
            continue
        codes = data.view(np.int8).reshape(tensor.shape)
        axis = int(tensor.quantization.quantizedDimension)
        name = flatbuffer.tensor_name(tensor)
        channels = len(tensor.quantization.scale)
        found.append(StoredKernel(position, reader, name, codes, axis, channels))
    return found
