"""Tables of embeddings: rows of INT8 in flash, of which GATHER copies some."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import GATHER, Match

_REASON = "a DECODE would decode the whole table for the rows that are looked up"


def write_tables(
    model: schema.ModelT, tables: Mapping[bytes, Match]
) -> dict[str, np.ndarray]:
    """Rounds the trained rows of tables to the levels of the operators' results.

    Args:
        model: a parsed integer file, which is changed.
        tables: `Match` of the table by the name of the GATHER's output.

    Returns:
        int8 array of each table by its name, the layer's.
    """
    written = {}
    for graph in model.subgraphs:
        indices: dict[tuple, int] = {}
        for operator, table in _gathers(model, graph):
            output = graph.tensors[operator.outputs[0]]
            found = tables.get(output.name)
            if found is None:
                continue
            scale, zero_point = output.quantization.scale, output.quantization.zeroPoint
            key = found.kernel.layer, scale[0], zero_point[0]
            if key not in indices:
                rows = found.codes * found.scale.reshape(-1, 1)
                codes = np.round(rows / scale[0]) + zero_point[0]
                codes = np.clip(codes, -128, 127).astype(np.int8)
                tensor = _table(model, table, output, found.kernel.layer, codes)
                indices[key] = flatbuffer.append_tensor(graph, tensor)
                written[found.kernel.layer] = codes
            operator.inputs = np.array([indices[key], operator.inputs[1]], np.int32)
    return written


def _table(model, like, output, name, codes):
    result = copy.copy(like)
    result.name = name.encode()
    result.buffer = flatbuffer.append_buffer(model, codes.view(np.uint8).ravel())
    result.quantization = copy.copy(output.quantization)
    return result


def check_tables(content: bytes, tables: Mapping[str, np.ndarray]) -> None:
    """Checks that a file holds tables, bit for bit.

    Raises:
        ValueError: if a table differs, or is missing.
    """
    model = flatbuffer.read(content)
    held = {
        flatbuffer.tensor_name(table): np.asarray(codes).tobytes()
        for _, table in _gathers(model, model.subgraphs[0])
        if (codes := flatbuffer.constant(model, table)) is not None
    }
    wrong = [name for name in tables if held.get(name) != tables[name].tobytes()]
    if wrong:
        raise ValueError(
            "The file should hold the rounded rows of each table. Received: something "
            f"else for {wrong}. Report this model as a bug."
        )


def table_rows(model: schema.ModelT) -> list[dict[str, Any]]:
    """Returns rows of `micro.rewrite.encoded_file` for the tables of a file."""
    tables = {id(table): table for _, table in _gathers(model, model.subgraphs[0])}
    return [
        {
            "tensor": flatbuffer.tensor_name(table),
            "shape": [int(size) for size in table.shape],
            "encoding": "INT8",
            "bits": 8,
            "bytes": int(np.prod(table.shape)),
            "int8_bytes": int(np.prod(table.shape)),
            "parts": 1,
            "reason": _REASON,
        }
        for table in tables.values()
    ]


def drop_negative_tokens(model: schema.ModelT) -> None:
    """Lets GATHER read its indices as they are.

    Keras adds the number of rows to negative ones, by operators that the runtime lacks
    for integers. An embedding is called with none.

    Args:
        model: a parsed file, which is changed.
    """
    graph = model.subgraphs[0]
    makers = {int(i): x for x in graph.operators for i in x.outputs}
    for gather, table in _gathers(model, graph):
        rows = int(table.shape[gather.builtinOptions.axis])
        tokens = _wrapped(model, graph, makers, int(gather.inputs[1]), rows)
        if tokens is not None:
            gather.inputs = np.array([gather.inputs[0], tokens], np.int32)
    used = {int(index) for index in graph.outputs}
    kept = []
    for operator in reversed(graph.operators):
        if used & {int(index) for index in operator.outputs}:
            used |= {int(index) for index in operator.inputs}
            kept.append(operator)
    graph.operators = kept[::-1]


def _wrapped(model, graph, makers, index, rows):
    """Index of x if a tensor is SELECT(x < 0, x + rows, x), or None."""

    def inputs(index, *names):
        operator = makers.get(index)
        is_named = operator and flatbuffer.operator_name(model, operator) in names
        return [int(i) for i in operator.inputs] if is_named else None

    def is_number(index, number):
        data = flatbuffer.constant(model, graph.tensors[index])
        return data is not None and data.tobytes() == np.int32(number).tobytes()

    selected = inputs(index, "SELECT", "SELECT_V2")
    if selected is None:
        return None
    condition, larger, tokens = selected
    is_negative, added = inputs(condition, "LESS"), inputs(larger, "ADD")
    if not is_negative or not added or not is_negative[0] == added[0] == tokens:
        return None
    is_wrapped = is_number(is_negative[1], 0) and is_number(added[1], rows)
    return tokens if is_wrapped else None


def _gathers(
    model: schema.ModelT, graph: schema.SubGraphT
) -> Iterator[tuple[schema.OperatorT, schema.TensorT]]:
    """Yields each GATHER from a constant INT8 tensor, and that tensor."""
    for operator in graph.operators:
        if flatbuffer.operator_name(model, operator) == GATHER:
            table = graph.tensors[operator.inputs[0]]
            is_constant = flatbuffer.constant(model, table) is not None
            if is_constant and table.type == schema.TensorType.INT8:
                yield operator, table
