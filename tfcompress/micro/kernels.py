"""Kernels of an int8 file, and the encoding of each."""

import dataclasses
import functools

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.micro.encodings import huffman, lookup, pruning
from tfcompress.micro.encodings.encoded import HUFFMAN, LOOKUP, NAMES, PRUNING, Encoded

# Operators that read a kernel as their second input.
READERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
# Bytes of the file for one more encoded tensor: three tensors, two buffers with their
# alignment, and an operator.
DECODE_BYTES = 96


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
        if reader not in READERS:
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


def encode(codes: np.ndarray, axis: int, channels: int) -> Encoded | None:
    """Encodes a kernel in the way that takes the fewest bytes of the file.

    Args:
        codes: int8 array.
        axis: int. Axis of channels.
        channels: int. Number of scales.

    Returns:
        `Encoded`, or None if INT8 takes as few.
    """
    return _encode(codes.tobytes(), codes.shape, axis, channels)


# An arena is fitted in several attempts, with many equal parts.
@functools.lru_cache(maxsize=256)
def _encode(data, shape, axis, channels):
    codes = np.frombuffer(data, np.int8).reshape(shape)
    options = [huffman.encode(codes), pruning.encode(codes)]
    if channels == 1:
        options.append(lookup.encode(codes.reshape(1, -1), 0))
    elif axis in (0, codes.ndim - 1):
        options.append(lookup.encode(codes, axis))
    best = min(filter(None, options), key=lambda found: found.bytes)
    return best if best.bytes + DECODE_BYTES < codes.size else None


def decode(
    data: bytes, ancillary: bytes, shape: tuple[int, ...], axis: int, channels: int
) -> np.ndarray:
    """Decodes a kernel, as the runtime does.

    Args:
        data, ancillary: bytes of the two tensors that DECODE reads.
        shape: tuple of ints. Shape of the decoded tensor.
        axis, channels: as in `encode`.

    Returns:
        int8 array of the shape.

    Raises:
        ValueError: if the encoding is unknown.
    """
    kind = ancillary[0]
    if kind == HUFFMAN:
        return huffman.decode(data, ancillary, shape)
    if kind == PRUNING:
        return pruning.decode(data, ancillary, shape)
    if kind == LOOKUP and channels == 1:
        flat = lookup.decode(data, ancillary, (1, int(np.prod(shape))), 0)
        return flat.reshape(shape)
    if kind == LOOKUP:
        return lookup.decode(data, ancillary, shape, axis)
    raise ValueError(f"One of the encodings {NAMES} is expected. Received: {kind}.")
