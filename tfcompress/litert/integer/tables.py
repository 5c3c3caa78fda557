"""Tables of embeddings in integer files: rows with trained codes, then quantized."""

from collections.abc import Iterable, Mapping

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import GATHER, Match, decode
from tfcompress.litert.look_up import as_looked_up
from tfcompress.litert.lowering.lowering import Place


def tables_by_output(
    model: schema.ModelT, places: Iterable[Place]
) -> dict[bytes, Match]:
    """Returns `{name of a GATHER's output: Match of the table that it reads}`.

    Args:
        model: a parsed float file.
        places: its kernels.
    """
    matches = {(id(graph), index): found for graph, index, found in places}
    return {
        graph.tensors[operator.outputs[0]].name: matches[id(graph), operator.inputs[0]]
        for graph in model.subgraphs
        for operator in graph.operators
        if flatbuffer.operator_name(model, operator) == GATHER
        and (id(graph), operator.inputs[0]) in matches
    }


def write_tables(model: schema.ModelT, tables: Mapping[bytes, Match]) -> list[Match]:
    """Replaces the tables that litert-quantizer rounded by the trained codes.

    Rows are decoded to float, and quantized to the range that was calibrated.

    Args:
        model: a parsed integer file, which is changed.
        tables: result of `tables_by_output` for the float file.

    Returns:
        The `Match` of each table in the file.
    """
    written = []
    for graph in model.subgraphs:
        indices: dict[int, tuple[int, Match]] = {}
        for operator in list(graph.operators):
            found = tables.get(graph.tensors[operator.outputs[0]].name)
            if found is None or flatbuffer.operator_name(model, operator) != GATHER:
                continue
            if id(found) not in indices:
                indices[id(found)] = _float_table(graph, found), found
            index = indices[id(found)][0]
            operator.inputs = np.array([index, operator.inputs[1]], np.int32)
            _quantize_rows(model, graph, operator)
        for index, found in indices.values():
            looked_up = as_looked_up(model, graph, index, found)
            if looked_up is None:
                decode(model, graph, index, found)
            written.append(looked_up or found)
    return written


def _float_table(graph, found):
    tensor = schema.TensorT(
        shape=np.array(found.codes.shape, np.int32),
        hasRank=True,
        type=schema.TensorType.FLOAT32,
        buffer=0,
    )
    return flatbuffer.append_tensor(graph, tensor)


def _quantize_rows(model, graph, gather):
    """Lets a GATHER return floats, and quantizes them to its result."""
    target = int(gather.outputs[0])
    if graph.tensors[target].type == schema.TensorType.FLOAT32:
        return
    rows = flatbuffer.append_tensor(
        graph,
        flatbuffer.computed_tensor(graph.tensors[target], schema.TensorType.FLOAT32),
    )
    gather.outputs = np.array([rows], np.int32)
    place = next(i for i, x in enumerate(graph.operators) if x is gather)
    quantize = flatbuffer.operator(model, "QUANTIZE", rows, target)
    graph.operators.insert(place + 1, quantize)
