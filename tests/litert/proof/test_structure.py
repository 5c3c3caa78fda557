"""Readers of `.tflite` files that are damaged, large or made to take long."""

import flatbuffers
import keras
import numpy as np
import pytest

from benchmarks.fuzz_readers import mutated, read_all
from tests.litert.models import several_inputs_and_outputs
from tests.litert.packed_models import make_packed
from tfcompress.compat.litert_private import schema
from tfcompress.inspect import inspect
from tfcompress.litert import check, export, flatbuffer
from tfcompress.litert.proof.structure import read_structure

# Numbers of damaged copies of each file.
COPIES = [range(500), pytest.param(range(500, 3000), marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def several_content(tmp_path_factory):
    """Content of a file with several inputs, outputs and kinds of layers."""
    path = tmp_path_factory.mktemp("exported") / "several.tflite"
    model = make_packed(keras.Model(*several_inputs_and_outputs()), bits=(2, 3, 8))
    export(model, path)
    return path.read_bytes()


@pytest.mark.parametrize("seeds", COPIES, ids=len)
def test_readers_return_or_raise_their_own_error_on_damaged_files(
    seeds, digit_content, several_content
):
    for content in (digit_content, several_content):
        accepted = sum(read_all(mutated(content, seed)) for seed in seeds)
        assert len(seeds) // 10 < accepted < len(seeds) // 2


def changed(content, change):
    model = flatbuffer.read(content)
    change(model, model.subgraphs[0])
    return flatbuffer.write(model)


def set_field(table, name, value):
    return lambda model, graph: setattr(table(model, graph), name, value)


def tensor(model, graph):
    return next(x for x in graph.tensors if model.buffers[x.buffer].data is not None)


DAMAGE = {
    "opcodeIndex": set_field(lambda m, g: g.operators[0], "opcodeIndex", 99),
    "inputs": set_field(lambda m, g: g.operators[0], "inputs", np.int32([999])),
    "outputs": set_field(lambda m, g: g, "outputs", np.int32([-1])),
    "buffer": set_field(tensor, "buffer", 999),
    "shape": set_field(tensor, "shape", np.int32([-1])),
    "size": set_field(tensor, "shape", np.int32([3, 1])),
    "type": set_field(tensor, "type", 77),
    "signature": set_field(lambda m, g: m.signatureDefs[0], "subgraphIndex", 5),
    "entry": set_field(lambda m, g: m.signatureDefs[0].inputs[0], "tensorIndex", 999),
    "no graph": set_field(lambda m, g: m, "subgraphs", None),
    "no buffers": set_field(lambda m, g: m, "buffers", None),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_reader_refuses_what_a_damaged_table_says(name, digit_content):
    with pytest.raises(ValueError, match="whole .tflite file.*a damaged or truncated"):
        flatbuffer.read(changed(digit_content, DAMAGE[name]))


def test_reader_takes_vectors_that_are_left_out_as_empty(digit_content):
    def leave_out(model, graph):
        model.signatureDefs = model.metadata = graph.outputs = None
        graph.operators[-1].inputs = None

    model = flatbuffer.read(changed(digit_content, leave_out))
    graph = model.subgraphs[0]
    assert model.signatureDefs == [] and graph.outputs.size == 0
    assert graph.operators[-1].inputs.size == 0


def test_reader_refuses_tables_that_are_shared_many_times():
    """A few kilobytes that unpack to millions of tensors."""
    builder = flatbuffers.Builder(0)
    count = 600

    def vector(start, table):
        start(builder, count)
        for _ in range(count):
            builder.PrependUOffsetTRelative(table)
        return builder.EndVector()

    schema.TensorStart(builder)
    one = schema.TensorEnd(builder)
    tensors = vector(schema.SubGraphStartTensorsVector, one)
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    graph = schema.SubGraphEnd(builder)
    graphs = vector(schema.ModelStartSubgraphsVector, graph)
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, graphs)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    with pytest.raises(ValueError, match="point to others many times over"):
        read_structure(bytes(builder.Output()))


def test_reader_of_a_file_that_is_no_tflite_reads_its_beginning_only(tmp_path):
    path = tmp_path / "zeros.tflite"
    with open(path, "wb") as stream:
        stream.truncate(2**40)  # more than any memory
    with pytest.raises(ValueError, match="'TFL3' after its first four bytes"):
        inspect(path)


def test_inspect_prints_names_as_they_are(digit_content, tmp_path):
    def rename(model, graph):
        for index, other in enumerate(graph.tensors):
            other.name = b"[red]%d\x1b[2J[/nothing]" % index

    path = tmp_path / "[bold]model.tflite"
    path.write_bytes(changed(digit_content, rename))
    text = inspect(path)
    assert "[red]" in text and "\x1b" not in text and "[bold]model" in text


def test_check_refuses_codes_without_scales(exported):
    path, model = exported

    def drop(model, graph):
        for other in graph.tensors:
            other.quantization = None

    path.write_bytes(changed(path.read_bytes(), drop))
    with pytest.raises(ValueError, match="Codes should have a scale"):
        check(path, model)
