"""Encoded kernels of a file, for a list of its contents."""

import math
from typing import NamedTuple

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.micro.encodings.choice import decode
from tfcompress.micro.encodings.encoded import HEADER_BYTES, LOOKUP, NAMES
from tfcompress.micro.operators import DECODE, operator_name


class EncodedConstant(NamedTuple):
    """Constant tensor that a DECODE computes.

    Attributes:
        type: str. Encoding and bits of an element: those of an index, or the mean of
            all that is stored.
        zeros: float. Share of elements that are zero.
        bytes: int. Bytes of codes, header and tables.
    """

    type: str
    zeros: float
    bytes: int


def encoded_constants(
    model: schema.ModelT, graph: schema.SubGraphT
) -> dict[int, EncodedConstant]:
    """Returns `{index of the decoded tensor: EncodedConstant}`.

    Args:
        model: a parsed file.
        graph: one of its graphs.

    Raises:
        ValueError: if a tensor cannot be decoded.
    """
    found = {}
    for operator in graph.operators:
        if operator_name(model, operator) != DECODE:
            continue
        for index, pair in _decoded(operator):
            arrays = [flatbuffer.constant(model, graph.tensors[i]) for i in pair]
            found[int(index)] = _constant(graph.tensors[index], *arrays)
    return found


def _decoded(operator):
    """Pairs `(index of a decoded tensor, indices of its codes and its tables)`."""
    inputs, outputs = operator.inputs, operator.outputs
    if len(inputs) != 2 * len(outputs) or min([*inputs, *outputs], default=0) < 0:
        raise ValueError(
            "Codes and tables for each tensor that a DECODE computes are expected. "
            f"Received: inputs {list(map(int, inputs))}, outputs "
            f"{list(map(int, outputs))}. The file is damaged."
        )
    return zip(outputs, zip(inputs[::2], inputs[1::2], strict=True), strict=True)


def _constant(tensor, data, ancillary):
    name = flatbuffer.tensor_name(tensor)
    shape = tuple(int(size) for size in tensor.shape)
    quantization = tensor.quantization
    try:
        # Each encoding takes a bit of each element; checked before memory is taken.
        if not 0 < math.prod(shape) <= 8 * len(data):
            raise ValueError(f"{len(data)} bytes of codes.")
        codes = decode(
            data.tobytes(),
            ancillary.tobytes(),
            shape,
            int(quantization.quantizedDimension),
            len(quantization.scale),
        )
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"Codes and tables of the kernel '{name}' of shape {shape} are expected. "
            f"Received: something else. The file is damaged: {error}"
        ) from error
    kind = int(ancillary[0])
    bits = 8 * (len(data) + len(ancillary) - HEADER_BYTES) / codes.size
    if kind == LOOKUP:
        bits = int(ancillary[5])
    return EncodedConstant(
        type=f"{NAMES[kind]} {bits:.3g} bits",
        zeros=float(np.mean(codes == 0)),
        bytes=len(data) + len(ancillary),
    )
