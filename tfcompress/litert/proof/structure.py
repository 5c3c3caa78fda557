"""Structure of a `.tflite` file, checked before anything of it is used.

LiteRT verifies the offsets of a file and little more. Python's reader verifies nothing:
it follows a table as often as others point to it, and leaves out what a file leaves
out. Here a file is read once, within a limit that its size sets, and then all indices,
sizes and types are checked. Every reader may rely on them.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert.runtime import IDENTIFIER
from tfcompress.quantizers.packing import packed_bytes

# Bytes that are visited at most, for a file of no bytes and for each of its bytes.
# Vectors that tables share are visited for each of them.
_LEAST_VISITED, _VISITED_PER_BYTE = 2**18, 16
_TABLE_BYTES = 16
_TYPES = {x for x in vars(schema.TensorType).values() if isinstance(x, int)}
_BITS = {
    "FLOAT16": 16, "FLOAT32": 32, "FLOAT64": 64, "BOOL": 8, "INT2": 2, "INT4": 4,
    "INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64, "UINT8": 8, "UINT16": 16,
    "UINT32": 32, "UINT64": 64, "COMPLEX64": 64, "COMPLEX128": 128,
}  # fmt: skip
# Bits of an element by tensor type; other types have no fixed size.
TYPE_BITS = {
    getattr(schema.TensorType, name): bits
    for name, bits in _BITS.items()
    if hasattr(schema.TensorType, name)
}
# Operators that readers look through: one input and one output at least.
_LOOKED_THROUGH = ("DEQUANTIZE", "ROUND")


def read_structure(content: bytes) -> schema.ModelT:
    """Reads a file whose structure may be damaged.

    Vectors that are left out become empty ones, and data of no bytes none.

    Args:
        content: bytes of the file.

    Raises:
        ValueError: if it is no `.tflite` file, or a damaged one.
    """
    if content[4:8] != IDENTIFIER:
        raise ValueError(
            "A .tflite file is expected, with the bytes 'TFL3' at its start. Received: "
            f"{len(content):,} bytes that begin with {bytes(content[:8])!r}."
        )
    try:
        root = schema.Model.GetRootAs(content)
        _visit(root, _Limit(_LEAST_VISITED + _VISITED_PER_BYTE * len(content)))
        model = schema.ModelT.InitFromObj(root)
        _move_appended(model, content)
        _fill_in(model)
        _check_model(model)
    except _Damaged as error:
        problem = str(error)
    except Exception as error:  # of the reader, on offsets that lead anywhere
        problem = f"its tables cannot be read ({type(error).__name__}: {error})"
    else:
        return model
    raise ValueError(
        f"A whole .tflite file is expected. Received: a damaged or truncated "
        f"one, {problem}. Export or copy it again."
    )


class _Damaged(Exception):
    """Damage that was found, as a clause."""


def _require(condition: Any, problem: str) -> None:
    if not condition:
        raise _Damaged(problem)


class _Limit:
    """Number of bytes that may still be visited."""

    def __init__(self, count: int) -> None:
        self.left = count

    def spend(self, count: int) -> None:
        """Counts bytes.

        Raises:
            _Damaged: if there are too many.
        """
        self.left -= count
        _require(self.left >= 0, "its tables point to others many times over")


def _visit(table: Any, limit: _Limit) -> None:
    """Visits a table and all below it, as the reader does later."""
    limit.spend(_TABLE_BYTES)
    kind: Any = type(table)
    vectors, fields = _parts(kind)
    for name in vectors:
        count = getattr(table, f"{name}Length")()
        # Data stay where they are.
        limit.spend(0 if name == "Data" else 4 * count)
        if count and hasattr(getattr(table, name)(0), "_tab"):
            for index in range(count):
                _visit(getattr(table, name)(index), limit)
    for name in fields:
        value = getattr(table, name)()
        if hasattr(value, "_tab"):
            _visit(value, limit)
        elif isinstance(value, bytes):
            limit.spend(len(value))


@functools.cache
def _parts(kind: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of a table's vectors, and of its other fields."""
    names = [name for name in vars(kind) if name[0].isupper()]
    vectors = [name for name in names if f"{name}Length" in names]
    others = {"Init", *(f"{x}{end}" for x in vectors for end in _ENDS)}
    fields = [x for x in names if x not in others and not x.startswith("GetRootAs")]
    fields = [x for x in fields if not x.endswith("BufferHasIdentifier")]
    return tuple(vectors), tuple(fields)


_ENDS = ("", "Length", "IsNone", "AsNumpy")


def _move_appended(model, content):
    """Moves data into buffers that some tools append after the tables."""
    for buffer in model.buffers or []:
        if buffer.offset > 1:  # 0 and 1 stand for none
            last = buffer.offset + buffer.size
            _require(last <= len(content), "data lie outside of it")
            buffer.data = np.frombuffer(content[buffer.offset : last], np.uint8)
            buffer.offset = buffer.size = 0


def _fill_in(model):
    """Sets what the file leaves out."""
    for name in ("operatorCodes", "subgraphs", "buffers", "signatureDefs"):
        setattr(model, name, getattr(model, name) or [])
    for buffer in model.buffers:
        if buffer.data is not None and np.size(buffer.data) == 0:
            buffer.data = None
    for graph in model.subgraphs:
        graph.tensors, graph.operators = graph.tensors or [], graph.operators or []
        _fill_vectors(graph, "inputs", "outputs")
        for operator in graph.operators:
            _fill_vectors(operator, "inputs", "outputs")
        for tensor in graph.tensors:
            _fill_vectors(tensor, "shape")
            if tensor.quantization is not None and not np.size(
                _or_empty(tensor.quantization.scale)
            ):
                tensor.quantization.scale = None
    for signature in model.signatureDefs:
        signature.inputs = signature.inputs or []
        signature.outputs = signature.outputs or []


def _fill_vectors(table, *names):
    for name in names:
        setattr(table, name, np.atleast_1d(_or_empty(getattr(table, name))))


def _or_empty(vector):
    # The reader returns the number 0 for some vectors that are left out.
    return np.zeros(0, np.int32) if np.ndim(vector) == 0 else vector


def _check_model(model):
    _require(model.subgraphs, "it has no graph")
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            _check_tensor(model, tensor)
        count = len(graph.tensors)
        _check_indices(graph.inputs, count, 0)
        _check_indices(graph.outputs, count, 0)
        for operator in graph.operators:
            _check_operator(model, operator, count)
    for signature in model.signatureDefs:
        index = signature.subgraphIndex
        _require(0 <= index < len(model.subgraphs), "a signature has no graph")
        count = len(model.subgraphs[index].tensors)
        entries = [*signature.inputs, *signature.outputs]
        _check_indices([entry.tensorIndex for entry in entries], count, 0)


def _check_indices(indices: Iterable[int], count: int, least: int) -> None:
    inside = all(least <= index < count for index in indices)
    _require(inside, f"an index is not one of its {count} tensors")


def _check_operator(model, operator, count):
    code = operator.opcodeIndex
    _require(0 <= code < len(model.operatorCodes), "an operator has no code")
    for indices in (operator.inputs, operator.outputs, operator.intermediates):
        # -1 stands for an optional tensor that is left out.
        _check_indices(_or_empty(indices), count, -1)
    builtin = model.operatorCodes[code].builtinCode
    if builtin in [getattr(schema.BuiltinOperator, x) for x in _LOOKED_THROUGH]:
        ends = [*operator.inputs[:1], *operator.outputs[:1]]
        _require(len(ends) == 2 and min(ends) >= 0, "an operator lacks its tensors")


def _check_tensor(model, tensor):
    _require(0 <= tensor.buffer < len(model.buffers), "a tensor has no buffer")
    _require(tensor.type in _TYPES, f"a tensor has the unknown type {tensor.type}")
    _require(all(size >= 0 for size in tensor.shape), "a size is negative")
    size = math.prod(int(x) for x in tensor.shape)
    data = model.buffers[tensor.buffer].data
    bits = TYPE_BITS.get(tensor.type)
    if data is not None and bits and tensor.sparsity is None:
        _require(
            len(data) == packed_bytes(size, bits),
            f"a constant of {size} elements has {len(data)} bytes",
        )
    quantization = tensor.quantization
    if quantization is not None and quantization.scale is not None:
        scales, axis = len(quantization.scale), quantization.quantizedDimension
        per_channel = 0 <= axis < len(tensor.shape) and scales == tensor.shape[axis]
        _require(scales == 1 or per_channel, f"{scales} scales fit no axis of a tensor")
