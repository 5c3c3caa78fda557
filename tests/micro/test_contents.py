"""Encoded kernels in the list of a file's contents."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfcompress as tfc
from benchmarks.fuzz_readers import mutated, read_all
from tests.litert.packed_models import make_packed
from tfcompress.inspect import inspect
from tfcompress.litert import flatbuffer
from tfcompress.litert.contents import constants
from tfcompress.micro.encodings.encoded import HEADER_BYTES
from tfcompress.micro.operators import DECODE, operator_name


@pytest.fixture
def exported(runtime, tmp_path):
    """`(path, model)` of a file with kernels in three encodings."""
    inputs = keras.Input((8, 8, 4))
    x = kl.Conv2D(16, 3, activation="relu", name="ternary")(inputs)
    x = kl.Conv2D(6, 3, activation="relu", name="mixed")(x)
    outputs = kl.Conv2D(16, 3, name="full")(x)
    model = make_packed(keras.Model(inputs, outputs), bits=(2, 4, 8))
    path = tmp_path / "model.tflite"
    samples = np.random.default_rng(0).normal(size=(4, 8, 8, 4)).astype("float32")
    tfc.export(model, path, target="micro", representative_data=samples)
    return path, model


def test_encoded_kernels_are_listed_with_encoding_bits_and_bytes(exported):
    path, model = exported
    kernels = {c.name: c for c in constants(path) if c.role == "kernel"}
    assert list(kernels) == ["ternary", "mixed", "full"]
    for name, constant in kernels.items():
        codes = np.array(model.get_layer(name).codes)
        assert constant.zeros == pytest.approx(np.mean(codes == 0))
        assert np.prod(constant.shape) == codes.size
        assert constant.read_by == "CONV_2D"
        assert constant.scale_bytes == 4 * codes.shape[-1]
    ternary, mixed = kernels["ternary"], kernels["mixed"]
    stored = 8 * (ternary.bytes - HEADER_BYTES) / (3 * 3 * 4 * 16)
    assert ternary.type == f"Huffman {stored:.3g} bits"
    assert mixed.type == "look-up 4 bits"
    assert mixed.bytes == 3 * 3 * 16 * 6 // 2 + HEADER_BYTES + 15
    assert kernels["full"].type == "INT8"


def test_inspect_shows_encodings(exported):
    path, _ = exported
    (row,) = [line for line in inspect(path).splitlines() if "mixed" in line]
    assert "look-up 4 bits" in row and "6 x 3 x 3 x 16" in row


def test_damaged_encoding_is_refused(exported):
    path, _ = exported
    model = flatbuffer.read(path.read_bytes())
    for buffer in model.buffers:
        if buffer.data is not None and bytes(buffer.data[:2]) == bytes([1, 1]):
            buffer.data = np.concatenate([[7], buffer.data[1:]]).astype(np.uint8)
    path.write_bytes(flatbuffer.write(model))
    with pytest.raises(ValueError, match="Codes and tables of the kernel.*damaged"):
        constants(path)


def lose_an_input(decode, decoded):
    decode.inputs = decode.inputs[:1]


def sized(decoded, size):
    """Sets the size of an axis that has no scales."""
    axis = decoded.quantization.quantizedDimension
    decoded.shape = [x if i == axis else size for i, x in enumerate(decoded.shape)]


def grow(decode, decoded):
    sized(decoded, 2**12)


def shrink(decode, decoded):
    sized(decoded, 0)


@pytest.mark.parametrize("change", [lose_an_input, grow, shrink])
def test_damaged_decode_operator_is_refused(exported, change):
    path, _ = exported
    model = flatbuffer.read(path.read_bytes())
    graph = model.subgraphs[0]
    for decode in graph.operators:
        if operator_name(model, decode) == DECODE:
            change(decode, graph.tensors[decode.outputs[0]])
    with pytest.raises(ValueError, match="Codes and tables.*Received.*is damaged"):
        constants(flatbuffer.write(model))


def test_readers_return_or_raise_their_own_error_on_damaged_encodings(exported):
    path, _ = exported
    content = path.read_bytes()
    accepted = sum(read_all(mutated(content, seed)) for seed in range(600))
    assert 60 < accepted < 300
