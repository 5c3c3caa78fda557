"""Rewriting of an int8 graph: encoded kernels, and operators split by channels."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.micro.encodings.choice import encode
from tfcompress.micro.encodings.encoded import LOOKUP, NAMES, Encoded
from tfcompress.micro.kernels import StoredKernel, stored_kernels
from tfcompress.micro.operators import DECODE
from tfcompress.micro.tables import table_rows

# Operators that can be split by output channels, the first axis of their kernels.
SPLITTABLE = ("CONV_2D", "FULLY_CONNECTED")
# Inputs that the runtime's CONCATENATION takes.
MOST_CONCATENATED = 10
# Encodings of a file that would be larger with any: none of the known ones.
_NONE = (-1,)
# Bytes of the file for one more part of a split operator, without its kernel.
PART_BYTES = 320


def encoded_file(
    content: bytes,
    parts: Mapping[int, int],
    encodings: Mapping[int, tuple[int, ...]] | None = None,
) -> tuple[bytes, list[dict[str, Any]]]:
    """Encodes the kernels of an int8 file where that takes fewer bytes.

    Args:
        content: the file.
        parts: number of parts of kernels by the positions of their first readers: 1 by
            default, 0 to leave a kernel in INT8. Operators of several parts compute
            slices of their output channels, which a CONCATENATION joins.
        encodings: those that kernels may have, as `stored_kernels` takes them.

    Returns:
        `(content, rows)`: the new file, and {"tensor", "encoding", "bits", "bytes",
        "int8_bytes", "parts", "reason"} of each kernel.
    """
    model = flatbuffer.read(content)
    kernels, rows = stored_kernels(model, encodings), table_rows(model)
    rewriter = _Rewriter(model)
    chosen: dict[int, tuple] = {}
    for kernel in kernels:
        count = parts.get(kernel.operators[0], 1)
        chunks = np.array_split(kernel.codes, max(1, count))
        encoded = [encoded_chunk(kernel, chunk) if count else None for chunk in chunks]
        chosen |= dict.fromkeys(kernel.operators, (kernel, chunks, encoded))
        rows.append(_row(kernel, chunks, encoded))
    for position, operator in enumerate(rewriter.old):
        if position in chosen:
            rewriter.add_parts(operator, *chosen[position])
        else:
            rewriter.add(operator)
    flatbuffer.strip(model)
    for tensor, name in rewriter.names:
        tensor.name = name
    encoded_content = flatbuffer.write(model)
    if len(encoded_content) >= len(content) and any(
        row["encoding"] != "INT8" for row in rows
    ):
        none = {kernel.operators[0]: _NONE for kernel in kernels}
        return encoded_file(content, {}, none)
    return encoded_content, rows


def encoded_chunk(kernel: StoredKernel, chunk: np.ndarray) -> Encoded | None:
    """Returns the encoding of a part of a kernel, or None for INT8."""
    channels = 1 if kernel.channels == 1 else chunk.shape[kernel.axis]
    return encode(chunk, kernel.axis, channels, len(kernel.operators), kernel.encodings)


def _row(kernel, chunks, encoded):
    names = [NAMES[part.kind] if part else "INT8" for part in encoded]
    sizes = [
        part.bytes if part else chunk.size
        for part, chunk in zip(encoded, chunks, strict=True)
    ]
    return {
        "tensor": kernel.name,
        "shape": list(kernel.codes.shape),
        "encoding": "/".join(dict.fromkeys(names)),
        "bits": max(part.bits if part else 8 for part in encoded),
        "bytes": sum(sizes),
        "int8_bytes": kernel.codes.size,
        "parts": len(chunks),
        "reason": _reason(kernel, chunks, encoded),
    }


def _reason(kernel, chunks, encoded):
    """Text that says why a kernel got its encoding."""
    if any(encoded):
        tables = kernel.encodings == (LOOKUP,)
        fewest = "fewest bytes" + (" that are decoded in little time" if tables else "")
        return fewest + (", in parts that fit in the arena" * (len(chunks) > 1))
    if not kernel.encodings:
        return "decoding it would take longer than allowed"
    if kernel.encodings != _NONE and encoded_chunk(kernel, kernel.codes):
        return "decoded, it does not fit in the arena, or parts save no bytes"
    return "no encoding saves bytes"


class _Rewriter:
    """Writer of a new list of operators.

    Attributes:
        old: list of the operators of the file as it was.
        names: list of (tensor, name) of the decoded kernels.

    Args:
        model: the parsed file. Its graph is changed.
    """

    def __init__(self, model: schema.ModelT) -> None:
        self._model = model
        self._graph = model.subgraphs[0]
        self.old: list[schema.OperatorT] = self._graph.operators
        self._graph.operators = []
        self.names: list[tuple[schema.TensorT, bytes | None]] = []

    def add(self, operator: schema.OperatorT) -> None:
        """Appends an operator."""
        self._graph.operators.append(operator)

    def add_parts(
        self,
        operator: schema.OperatorT,
        kernel: StoredKernel,
        chunks: Sequence[np.ndarray],
        encoded: Sequence[Encoded | None],
    ) -> None:
        """Appends an operator in parts, each after the DECODE of its kernel."""
        if len(chunks) == 1:
            if encoded[0]:
                tensor = self._graph.tensors[operator.inputs[1]]
                operator.inputs = np.array(operator.inputs, np.int32)
                operator.inputs[1] = self._decoded(tensor, encoded[0])
            self.add(operator)
            return
        outputs, first = [], 0
        for chunk, code in zip(chunks, encoded, strict=True):
            last = first + len(chunk)
            part = self._part(operator, slice(first, last), kernel)
            if code:
                tensor = self._graph.tensors[part.inputs[1]]
                part.inputs[1] = self._decoded(tensor, code)
            self.add(part)
            outputs.append(int(part.outputs[0]))
            first = last
        self._concatenate(outputs, int(operator.outputs[0]))

    def _decoded(self, tensor: schema.TensorT, code: Encoded) -> int:
        """Appends a DECODE, and returns the index of what it decodes."""
        sources = [
            flatbuffer.append_tensor(self._graph, self._bytes(data))
            for data in (code.data, code.ancillary)
        ]
        result = copy.copy(tensor)
        result.buffer = 0
        self.names.append((result, tensor.name))
        if len(tensor.quantization.scale) == 1:
            # The runtime takes no other axis for one channel.
            result.quantization = copy.copy(tensor.quantization)
            result.quantization.quantizedDimension = 0
        target = flatbuffer.append_tensor(self._graph, result)
        self.add(
            schema.OperatorT(
                opcodeIndex=self._decode_code(),
                inputs=np.array(sources, np.int32),
                outputs=np.array([target], np.int32),
            )
        )
        return target

    def _bytes(self, data):
        array = np.frombuffer(data, np.uint8)
        return schema.TensorT(
            shape=np.array([array.size], np.int32),
            type=schema.TensorType.UINT8,
            buffer=flatbuffer.append_buffer(self._model, array),
        )

    def _decode_code(self):
        codes = self._model.operatorCodes
        for index, code in enumerate(codes):
            if code.customCode == DECODE:
                return index
        custom = schema.BuiltinOperator.CUSTOM
        codes.append(
            schema.OperatorCodeT(
                deprecatedBuiltinCode=custom,
                builtinCode=custom,
                customCode=DECODE,
                version=1,
            )
        )
        return len(codes) - 1

    def _part(self, operator, rows, kernel):
        """A copy of an operator for a slice of its output channels."""
        part = copy.copy(operator)
        part.inputs = np.array(operator.inputs, np.int32)
        for place in (1, 2):
            if place < len(part.inputs) and part.inputs[place] >= 0:
                tensor = self._graph.tensors[operator.inputs[place]]
                part.inputs[place] = self._slice(tensor, rows)
        output = self._graph.tensors[operator.outputs[0]]
        shape = [*output.shape[:-1], rows.stop - rows.start]
        part.outputs = np.array([self._computed(output, shape)], np.int32)
        return part

    def _slice(self, tensor, rows):
        """Appends a slice of a constant along its first axis."""
        data = flatbuffer.constant(self._model, tensor).reshape(tensor.shape[0], -1)
        result = copy.copy(tensor)
        result.shape = np.array([rows.stop - rows.start, *tensor.shape[1:]], np.int32)
        result.buffer = flatbuffer.append_buffer(self._model, data[rows].ravel())
        if tensor.quantization is not None and len(tensor.quantization.scale) > 1:
            result.quantization = copy.copy(tensor.quantization)
            result.quantization.scale = tensor.quantization.scale[rows]
            result.quantization.zeroPoint = tensor.quantization.zeroPoint[rows]
        return flatbuffer.append_tensor(self._graph, result)

    def _computed(self, like, shape):
        result = copy.copy(like)
        result.name = None
        result.shape, result.buffer = np.array(shape, np.int32), 0
        return flatbuffer.append_tensor(self._graph, result)

    def _concatenate(self, sources, target):
        """Appends CONCATENATIONs along the channels, of as many inputs as allowed."""
        output = self._graph.tensors[target]
        while len(sources) > MOST_CONCATENATED:
            joined = sources[:MOST_CONCATENATED]
            width = sum(int(self._graph.tensors[i].shape[-1]) for i in joined)
            middle = self._computed(output, [*output.shape[:-1], width])
            self._concatenate(joined, middle)
            sources = [middle, *sources[MOST_CONCATENATED:]]
        operator = flatbuffer.operator(
            self._model, "CONCATENATION", sources[0], target, version=2
        )
        operator.inputs = np.array(sources, np.int32)
        operator.builtinOptionsType = schema.BuiltinOptions.ConcatenationOptions
        operator.builtinOptions = schema.ConcatenationOptionsT(
            axis=len(output.shape) - 1
        )
        self.add(operator)
