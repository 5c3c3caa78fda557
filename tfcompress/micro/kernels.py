"""Kernels of an int8 file, and the encoding of each."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import DATA_AND_BIAS
from tfcompress.micro.encodings.encoded import NAMES


@dataclasses.dataclass(frozen=True)
class StoredKernel:
    """INT8 kernel that operators read.

    Attributes:
        operators: tuple of ints. Positions of its readers in the graph, ascending. A
            layer that is called several times has several, and so has each step of an
            unrolled loop.
        reader: str. Name of these operators.
        name: str. Name of the kernel's tensor.
        codes: int8 array.
        axis: int. Axis of channels.
        channels: int. Number of scales; 1 for one scale of all channels.
        encodings: tuple of ints. Kinds of encodings that it may have besides INT8.
    """

    operators: tuple[int, ...]
    reader: str
    name: str
    codes: np.ndarray
    axis: int
    channels: int
    encodings: tuple[int, ...]


def stored_kernels(
    model: schema.ModelT, encodings: Mapping[int, tuple[int, ...]] | None = None
) -> list[StoredKernel]:
    """Lists the constant INT8 kernels of a file, in the order of their operators.

    Args:
        model: the parsed file.
        encodings: those of each kernel by the position of its first reader; all where
            none are given.
    """
    graph = model.subgraphs[0]
    readers: dict[int, list[int]] = {}
    for position, operator in enumerate(graph.operators):
        if flatbuffer.operator_name(model, operator) in DATA_AND_BIAS:
            readers.setdefault(int(operator.inputs[1]), []).append(position)
    found = []
    for index, positions in readers.items():
        tensor = graph.tensors[index]
        data = flatbuffer.constant(model, tensor)
        if data is None or tensor.type != schema.TensorType.INT8:
            continue
        found.append(
            StoredKernel(
                operators=tuple(positions),
                reader=flatbuffer.operator_name(model, graph.operators[positions[0]]),
                name=flatbuffer.tensor_name(tensor),
                codes=data.view(np.int8).reshape(tensor.shape),
                axis=int(tensor.quantization.quantizedDimension),
                channels=len(tensor.quantization.scale),
                encodings=(encodings or {}).get(positions[0], tuple(NAMES)),
            )
        )
    return found
