"""Encoded kernels of a file, for a list of its contents."""

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
        pairs = zip(operator.inputs[::2], operator.inputs[1::2], strict=True)
        for index, pair in zip(operator.outputs, pairs, strict=True):
            arrays = [flatbuffer.constant(model, graph.tensors[i]) for i in pair]
            found[int(index)] = _constant(graph.tensors[index], *arrays)
    return found


def _constant(tensor, data, ancillary):
    name = flatbuffer.tensor_name(tensor)
    shape = tuple(int(size) for size in tensor.shape)
    quantization = tensor.quantization
    try:
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
            f"Received: something else. The file is damaged. NumPy says: {error}"
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
