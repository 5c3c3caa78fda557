"""Tables of embeddings that are read row by row, in few bits."""

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import LOOK_UP_BITS, Match, kernel_tensor
from tfcompress.litert.lowering.reader import free_sizes

# The version of EMBEDDING_LOOKUP with a scale per row and INT4.
_VERSION = 4


def look_up(
    model: schema.ModelT, graph: schema.SubGraphT, index: int, found: Match
) -> bool:
    """Rewrites each GATHER from a float table as EMBEDDING_LOOKUP in its codes.

    The operator decodes the rows that it returns, exactly as DEQUANTIZE would, and no
    others. Indices of several axes are flattened before it.

    Args:
        model: a parsed file, which is changed.
        graph: one of its graphs.
        index: index of the table's tensor, which GATHER operators alone read.
        found: `Match` of the table. Its container is one that the operator reads.

    Returns:
        Whether it is done. Nothing is changed where the operator cannot look up, such
        as for indices with several free sizes.
    """
    readers = [x for x in graph.operators if index in x.inputs]
    if (
        found.kernel.bits not in LOOK_UP_BITS["EMBEDDING_LOOKUP"]
        or found.axis != 0
        or not all(_can_look_up(graph, reader, index) for reader in readers)
    ):
        return False
    table = flatbuffer.append_tensor(graph, kernel_tensor(model, found))
    for reader in readers:
        _rewrite(model, graph, reader, table)
    return True


def _can_look_up(graph, gather, index):
    table, indices = gather.inputs
    options = gather.builtinOptions
    tensor = graph.tensors[indices]
    return (
        table == index
        and options.axis == options.batchDims == 0
        and tensor.type == schema.TensorType.INT32
        and sum(size < 0 for size in free_sizes(tensor)) <= 1
    )


def _rewrite(model, graph, gather, table):
    indices, (output,) = int(gather.inputs[1]), gather.outputs
    columns = int(graph.tensors[table].shape[1])
    sizes = free_sizes(graph.tensors[indices])
    count = -1 if min(sizes, default=0) < 0 else int(np.prod(sizes))
    flat = _computed(graph, [count], schema.TensorType.INT32)
    rows = _computed(graph, [count, columns], schema.TensorType.FLOAT32)
    place = next(i for i, x in enumerate(graph.operators) if x is gather)
    graph.operators[place : place + 1] = [
        _operator(model, "RESHAPE", [indices, _sizes(model, graph, [count])], flat),
        _operator(model, "EMBEDDING_LOOKUP", [flat, table], rows, _VERSION),
        _operator(
            model, "RESHAPE", [rows, _sizes(model, graph, [*sizes, columns])], output
        ),
    ]


def _operator(model, name, sources, target, version=1):
    new = flatbuffer.operator(model, name, sources[0], target, version)
    new.inputs = np.array(sources, np.int32)
    return new


def _computed(graph, sizes, tensor_type):
    tensor = schema.TensorT(
        shape=np.array([max(size, 1) for size in sizes], np.int32),
        shapeSignature=np.array(sizes, np.int32),
        hasRank=True,
        type=tensor_type,
        buffer=0,
    )
    return flatbuffer.append_tensor(graph, tensor)


def _sizes(model, graph, sizes):
    """Index of a new constant, a shape."""
    tensor = schema.TensorT(
        shape=np.array([len(sizes)], np.int32),
        hasRank=True,
        type=schema.TensorType.INT32,
        buffer=flatbuffer.append_buffer(model, np.array(sizes, "<i4").view(np.uint8)),
    )
    return flatbuffer.append_tensor(graph, tensor)
