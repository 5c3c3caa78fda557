"""Times of decoding, and the kernels whose decoding takes a small share of the time.

Measured in the runtime on x86-64, by `python -m benchmarks.devices.micro_costs`. Times
on a device are others, and their ratios decide. Operators that are optimized for the
device are faster, so that decoding weighs more.
"""

from collections.abc import Sequence

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import DATA_AND_BIAS
from tfcompress.micro.encodings.choice import DECODE_BYTES
from tfcompress.micro.encodings.encoded import LOOKUP
from tfcompress.micro.kernels import StoredKernel, stored_kernels
from tfcompress.micro.rewrite import encoded_chunk

# Nanoseconds of a multiply-add.
_MULTIPLY_ADD = {
    "FULLY_CONNECTED": 0.46,
    "CONV_2D": 0.5,
    "DEPTHWISE_CONV_2D": 2.1,
    "TRANSPOSE_CONV": 0.5,
}
# Nanoseconds of a look-up by the bits of an index: the runtime has code of its own for
# some widths.
_LOOK_UP = {2: 0.22, 3: 0.22, 4: 0.22}
_LOOK_UP_OF_OTHER_BITS = 1.2


def looked_up_in_time(content: bytes, allowance: float) -> dict[int, tuple[int, ...]]:
    """Chooses the kernels that may be look-up tables, the others being INT8.

    Those that save most bytes for their time come first, until the operators that read
    kernels would take longer than allowed.

    Args:
        content: an int8 file.
        allowance: float. Time relative to that of INT8 kernels.

    Returns:
        Encodings that each kernel may have, as `encoded_file` takes them.
    """
    model = flatbuffer.read(content)
    looked_up: dict[int, tuple[int, ...]] = {
        kernel.operators[0]: (LOOKUP,) for kernel in stored_kernels(model)
    }
    kernels = stored_kernels(model, looked_up)
    total = sum(_time(model, kernel) for kernel in kernels)
    free = (allowance - 1) * total
    options = []
    for kernel in kernels:
        found = encoded_chunk(kernel, kernel.codes)
        if found is not None:  # it saves bytes
            readers = len(kernel.operators)
            per_weight = _LOOK_UP.get(found.bits, _LOOK_UP_OF_OTHER_BITS)
            spent = readers * kernel.codes.size * per_weight
            saved = kernel.codes.size - found.bytes - readers * DECODE_BYTES
            options.append((saved / spent, spent, kernel.operators[0]))
    for _, spent, first in sorted(options, reverse=True):
        if spent > free:
            looked_up[first] = ()
        else:
            free -= spent
    return looked_up


def _time(model: schema.ModelT, kernel: StoredKernel) -> float:
    """Returns the nanoseconds of all operators that read a kernel in INT8."""
    graph = model.subgraphs[0]
    positions = 0
    for place in kernel.operators:
        operator = graph.operators[place]
        index = operator.outputs[0]
        if kernel.reader == "TRANSPOSE_CONV":  # it spreads each input
            index = operator.inputs[DATA_AND_BIAS[kernel.reader][0]]
        positions += _positions(graph.tensors[index].shape)
    return positions * kernel.codes.size * _MULTIPLY_ADD[kernel.reader]


def _positions(shape: Sequence[int]) -> int:
    return int(np.prod(shape[:-1]))
