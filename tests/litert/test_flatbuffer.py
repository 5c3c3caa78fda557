"""Reader and writer of the flatbuffer."""

import numpy as np
import pytest

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer


def model_of(buffers, names=None):
    """Model of one graph, with one float tensor per buffer and no operators."""
    tensors = [
        schema.TensorT(
            name=name,
            type=schema.TensorType.FLOAT32,
            shape=np.array([0 if data is None else data.size // 4], np.int32),
            buffer=i,
        )
        for i, (data, name) in enumerate(
            zip(buffers, names or ["x"] * len(buffers), strict=True)
        )
    ]
    graph = schema.SubGraphT(
        tensors=tensors,
        operators=[],
        inputs=np.zeros(0, np.int32),
        outputs=np.zeros(0, np.int32),
    )
    return schema.ModelT(
        version=3,
        subgraphs=[graph],
        operatorCodes=[],
        buffers=[schema.BufferT(data=data) for data in buffers],
        description="made by hand",
        metadata=[schema.MetadataT(name="version", buffer=0)],
    )


def floats(*values):
    return np.array(values, np.float32).view(np.uint8)


def test_write_and_read_are_inverse():
    model = model_of([None, floats(1, 2), floats(3)])
    back = flatbuffer.read(flatbuffer.write(model))
    np.testing.assert_array_equal(back.buffers[1].data, floats(1, 2))
    assert back.subgraphs[0].tensors[2].buffer == 2
    assert back.description == b"made by hand"


def test_read_moves_buffers_after_the_flatbuffer_into_it():
    data = floats(*range(9))
    model = model_of([None, floats(1), None])
    model.subgraphs[0].tensors[2].shape = np.array([9], np.int32)
    model.buffers[2].offset = model.buffers[2].size = 36
    # Written twice: the offset is the length, which does not depend on it.
    model.buffers[2].offset = len(flatbuffer.write(model))
    content = flatbuffer.write(model) + data.tobytes()
    back = flatbuffer.read(content)
    np.testing.assert_array_equal(back.buffers[2].data, data)
    np.testing.assert_array_equal(back.buffers[1].data, floats(1))
    again = flatbuffer.read(flatbuffer.write(back))
    np.testing.assert_array_equal(again.buffers[2].data, data)


@pytest.mark.parametrize("lengths", [(3, 5, 17), (1, 2, 3), (16, 1, 40)])
def test_write_aligns_buffers_to_16_bytes_as_the_schema_asks(lengths):
    data = [np.arange(n, dtype=np.uint8) + 200 + n for n in lengths]
    content = flatbuffer.write(model_of([None, *data]))
    for array in data:
        # The first 4 bytes of a vector are its length.
        start = content.index(np.uint32(array.size).tobytes() + array.tobytes()) + 4
        assert start % 16 == 0


def test_write_stores_equal_vectors_and_strings_once():
    zeros = np.zeros(4000, np.uint8)
    once = flatbuffer.write(model_of([None, zeros], ["a" * 500] * 2))
    thrice = flatbuffer.write(model_of([None, zeros, zeros, zeros], ["a" * 500] * 4))
    assert len(thrice) - len(once) < 200


def test_strip_drops_unread_buffers_names_and_metadata():
    model = model_of([None, floats(1), floats(2), floats(1)], ["in", "a", "b", "c"])
    graph = model.subgraphs[0]
    graph.inputs = np.array([0], np.int32)
    add = flatbuffer.operator(model, "ADD", 1, 3)
    graph.operators = [add]
    flatbuffer.strip(model)
    assert [tensor.name for tensor in graph.tensors] == ["in", None, None]
    assert [add.inputs.tolist(), add.outputs.tolist()] == [[1], [2]]
    assert [tensor.buffer for tensor in graph.tensors] == [0, 1, 1]
    assert [buffer.data is None for buffer in model.buffers] == [True, False]
    assert model.metadata is None and model.description is None
