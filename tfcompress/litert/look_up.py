"""Tables of embeddings in few bits, of which a run decodes the rows that it reads.

    rows = GATHER(codes, indices) * GATHER(scales, indices)

This is exact: DEQUANTIZE multiplies the same numbers, but decodes the whole table into
memory. Scales are a constant of their own. As parameters of the codes they would take
12 bytes a row in place of 4, with a zero point each. GATHER reads no INT2. There it
reads bytes of four codes, and a second GATHER finds the four in a list of all bytes.
"""

from dataclasses import dataclass

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import GATHER, Match
from tfcompress.litert.lowering.reader import free_sizes
from tfcompress.quantizers.packing import pack, unpack

_CODES_IN_A_BYTE = 4
# Of the operators on INT4.
_GATHER_VERSION, _CAST_VERSION = 6, 6
_TYPES = {4: schema.TensorType.INT4, 8: schema.TensorType.INT8}
_BITS = {kind: bits for bits, kind in _TYPES.items()}


@dataclass(frozen=True)
class Table:
    """Table in a file.

    Attributes:
        codes: int. Index of the tensor of its codes, INT8, INT4 or bytes in UINT8.
        bits: int. Bits of a code: 8, 4 or 2.
        shape: tuple of int, (rows, columns).
        scale: float32 array, (rows,).
    """

    codes: int
    bits: int
    shape: tuple[int, int]
    scale: np.ndarray


def as_looked_up(
    model: schema.ModelT, graph: schema.SubGraphT, index: int, found: Match
) -> Match | None:
    """Rewrites each GATHER from a float table as look-ups in codes and scales.

    Args:
        model: a parsed file, which is changed.
        graph: one of its graphs.
        index: index of the table's tensor, which GATHER operators alone read.
        found: `Match` of the table.

    Returns:
        The `Match` in the container that is in the file. None if the operators read
        the table in another way than by rows, or several sizes of the indices are free;
        then nothing is changed.
    """
    readers = [x for x in graph.operators if index in x.inputs]
    if found.axis != 0 or not all(_reads_rows(x, index) for x in readers):
        return None
    columns, bits = found.codes.shape[-1], found.kernel.bits
    if bits == 2 and columns % _CODES_IN_A_BYTE:
        bits = 4
    if bits == 2:  # RESHAPE follows
        indices = [graph.tensors[reader.inputs[1]] for reader in readers]
        if any(sum(size < 0 for size in free_sizes(x)) > 1 for x in indices):
            return None
    if bits == 4 and columns % 2:
        bits = 8  # a row begins with a byte
    found = found.in_container(bits)
    writer = _Writer(model, graph)
    codes, scales = writer.codes(found), writer.scales(found)
    for reader in readers:
        writer.replace(reader, codes, scales, found)
    return found


def _reads_rows(gather, index):
    options = gather.builtinOptions
    return gather.inputs[0] == index and options.axis == options.batchDims == 0


class _Writer:
    """Writer of look-ups into a graph."""

    def __init__(self, model: schema.ModelT, graph: schema.SubGraphT) -> None:
        self._model = model
        self._graph = graph

    def codes(self, found: Match) -> int:
        bits = found.kernel.bits
        rows, columns = found.codes.shape
        tensor_type = _TYPES.get(bits, schema.TensorType.UINT8)
        if bits == 2:
            columns //= _CODES_IN_A_BYTE
        index = self._constant(pack(found.codes, bits), (rows, columns), tensor_type)
        tensor = self._graph.tensors[index]
        tensor.name = found.kernel.layer
        # The codes are what they are. `strip` keeps the names of quantized tensors.
        tensor.quantization = schema.QuantizationParametersT(
            scale=np.ones(1, np.float32), zeroPoint=np.zeros(1, np.int64)
        )
        return index

    def scales(self, found: Match) -> int:
        data: np.ndarray = found.scale.astype("<f4").view(np.uint8)
        return self._constant(data, (len(found.scale), 1), schema.TensorType.FLOAT32)

    def replace(
        self, gather: schema.OperatorT, codes: int, scales: int, found: Match
    ) -> None:
        """Replaces a GATHER of the float table."""
        kind = schema.TensorType
        indices, (output,) = int(gather.inputs[1]), gather.outputs
        sizes = free_sizes(self._graph.tensors[indices])
        columns = found.codes.shape[1]
        place = next(i for i, x in enumerate(self._graph.operators) if x is gather)
        del self._graph.operators[place]
        new: list[schema.OperatorT] = []

        def result(name, inputs, sizes, tensor_type):
            target = self._computed(sizes, tensor_type)
            new.append(self._operator(name, inputs, target, gather))
            return target

        if found.kernel.bits == 2:
            parts = [*sizes, columns // _CODES_IN_A_BYTE]
            found_bytes = result(GATHER, [codes, indices], parts, kind.UINT8)
            places = result("CAST", [found_bytes], parts, kind.INT32)
            fields = [self._fields(), places]
            parts = [*parts, _CODES_IN_A_BYTE]
            integers = result(GATHER, fields, parts, kind.INT8)
            integers = result(
                "RESHAPE",
                [integers, self._sizes([*sizes, columns])],
                [*sizes, columns],
                kind.INT8,
            )
        else:
            integers = result(
                GATHER,
                [codes, indices],
                [*sizes, columns],
                self._graph.tensors[codes].type,
            )
        floats = result("CAST", [integers], [*sizes, columns], kind.FLOAT32)
        factors = result(GATHER, [scales, indices], [*sizes, 1], kind.FLOAT32)
        new.append(self._operator("MUL", [floats, factors], output, gather))
        self._graph.operators[place:place] = new

    def _fields(self):
        """The four codes of each byte, in the order of bytes from 0."""
        codes = unpack(np.arange(256, dtype=np.uint8), 2, 256 * _CODES_IN_A_BYTE)
        data = codes.astype(np.int8).view(np.uint8)
        shape = 256, _CODES_IN_A_BYTE
        return self._constant(data, shape, schema.TensorType.INT8)

    def _sizes(self, sizes):
        data = np.array(sizes, "<i4").view(np.uint8)
        return self._constant(data, (len(sizes),), schema.TensorType.INT32)

    def _constant(self, data, shape, tensor_type):
        tensor = schema.TensorT(
            shape=np.array(shape, np.int32),
            hasRank=True,
            type=tensor_type,
            buffer=flatbuffer.append_buffer(self._model, data),
        )
        return flatbuffer.append_tensor(self._graph, tensor)

    def _computed(self, sizes, tensor_type):
        tensor = schema.TensorT(
            shape=np.array([max(size, 1) for size in sizes], np.int32),
            shapeSignature=np.array(sizes, np.int32),
            hasRank=True,
            type=tensor_type,
            buffer=0,
        )
        return flatbuffer.append_tensor(self._graph, tensor)

    def _operator(self, name, sources, target, gather):
        version = {GATHER: _GATHER_VERSION, "CAST": _CAST_VERSION}.get(name, 1)
        new = flatbuffer.operator(self._model, name, sources[0], target, version)
        new.inputs = np.array(sources, np.int32)
        if name == GATHER:
            new.builtinOptions = gather.builtinOptions
            new.builtinOptionsType = gather.builtinOptionsType
        elif name == "MUL":
            new.builtinOptions = schema.MulOptionsT()
            new.builtinOptionsType = schema.BuiltinOptions.MulOptions
        return new


def tables(model: schema.ModelT, graph: schema.SubGraphT) -> list[Table]:
    """Returns the tables of a graph that are written as `as_looked_up` does it.

    Args:
        model: a parsed file.
        graph: one of its graphs.
    """
    makers = {int(x.outputs[0]): x for x in graph.operators if len(x.outputs) == 1}

    def source(index, *names):
        """Index of the input that operators of these names, in turn, start from."""
        for name in names:
            maker = makers.get(index)
            if maker is None or flatbuffer.operator_name(model, maker) != name:
                return -1
            index = int(maker.inputs[0])
        return index

    found = {}
    for operator in graph.operators:
        if flatbuffer.operator_name(model, operator) != "MUL":
            continue
        product, factors = (int(index) for index in operator.inputs)
        scale = _values(model, graph, source(factors, GATHER), np.float32)
        if scale is None:
            continue
        codes = source(product, "CAST", GATHER)
        fields = makers.get(source(product, "CAST", "RESHAPE"))
        if fields is not None and flatbuffer.operator_name(model, fields) == GATHER:
            codes = source(int(fields.inputs[1]), "CAST", GATHER)
        table = _table(model, graph, codes, scale)
        if table is not None:
            found[codes] = table
    return list(found.values())


def _table(model, graph, codes, scale):
    """The `Table` of a tensor of codes, or None if it is no constant one."""
    if _values(model, graph, codes, np.uint8) is None:
        return None
    tensor = graph.tensors[codes]
    if len(tensor.shape) != 2 or tensor.shape[0] != len(scale):
        return None
    rows, columns = (int(size) for size in tensor.shape)
    if tensor.type == schema.TensorType.UINT8:
        return Table(codes, 2, (rows, _CODES_IN_A_BYTE * columns), scale)
    bits = _BITS.get(tensor.type)
    return None if bits is None else Table(codes, bits, (rows, columns), scale)


def _values(model, graph, index, dtype):
    """Values of a constant, or None if there is none of that index."""
    data = flatbuffer.constant(model, graph.tensors[index]) if index >= 0 else None
    is_float = index >= 0 and graph.tensors[index].type == schema.TensorType.FLOAT32
    if data is None or is_float != (dtype == np.float32):
        return None
    return data.view(dtype)
