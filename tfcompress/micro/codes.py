"""Codes of kernels that fill eight bits.

Operators multiply integer sums by scales, and round twice. Large codes have small
scales, and then the first rounding hardly counts.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import DATA_AND_BIAS, Match, kernel_tensor


def fill_eight_bits(
    model: schema.ModelT, places: Iterable[tuple[schema.SubGraphT, int, Match]]
) -> list[Match]:
    """Writes kernels as INT8, with codes times a power of two and scales divided by it.

    The values stay the same. Biases are counted in units of the scales, and keep within
    int32.

    Args:
        model: a parsed integer file, which is changed.
        places: `(graph, index of the tensor, Match)` of each kernel.

    Returns:
        The `Match` of each kernel as written.
    """
    return [_filled(model, *place) for place in places]


def _filled(model, graph, index, match):
    biases = list(_biases(model, graph, index))
    codes = [flatbuffer.constant(model, bias).view("<i4") for bias in biases]
    room = [127 // _largest(match.codes)]
    room += [(2**31 - 1) // _largest(each) for each in codes]
    factor = 2 ** (max(1, min(room)).bit_length() - 1)
    for bias, each in zip(biases, codes, strict=True):
        data = (each * np.int32(factor)).view(np.uint8)
        bias.buffer = flatbuffer.append_buffer(model, data)
        bias.quantization.scale = bias.quantization.scale / np.float32(factor)
    match = dataclasses.replace(
        match,
        kernel=dataclasses.replace(match.kernel, bits=8),
        codes=(match.codes * factor).astype(np.int8),
        scale=match.scale / np.float32(factor),
    )
    graph.tensors[index] = kernel_tensor(model, match)
    return match


def _biases(model, graph, kernel):
    """Bias tensors of the operators that read a kernel."""
    for operator in graph.operators:
        _, bias = DATA_AND_BIAS.get(flatbuffer.operator_name(model, operator), (0, 0))
        if bias and operator.inputs[1] == kernel and len(operator.inputs) > bias:
            yield graph.tensors[operator.inputs[bias]]


def _largest(codes):
    return max(1, int(np.abs(codes.astype(np.int64)).max(initial=0)))
