"""Encoded and split operators against the int8 file, in the runtime."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from tests.litert.packed_models import make_packed
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import packed_kernels
from tfcompress.litert.proof.samples import Samples
from tfcompress.micro.exporter import int8_file
from tfcompress.micro.kernels import stored_kernels
from tfcompress.micro.operators import operator_name
from tfcompress.micro.proof import check_kernels, prove
from tfcompress.micro.rewrite import encoded_file
from tfcompress.micro.runtime import MicroRunner


def made(shape, stack, bits=(2,)):
    """`(model, samples, int8 file)` of layers that are called one after the other."""
    outputs = inputs = keras.Input(shape)
    for layer in stack:
        outputs = layer(outputs)
    model = make_packed(keras.Model(inputs, outputs), bits)
    samples = Samples(model, np.random.default_rng(0).normal(size=(6, *shape)))
    plain, *_ = int8_file(model, packed_kernels(model), samples)
    return model, samples, plain


def checked(runtime, plain, content, samples):
    """Checks kernels and outputs of a file to be those of the int8 file."""
    check_kernels(runtime, plain, content)
    codes = []
    for name, file in (("int8", plain), ("encoded", content)):
        runner = MicroRunner(runtime, file, name)
        runner(next(iter(samples)))
        codes.append(runner.codes)
    for x, y in zip(*codes, strict=True):
        np.testing.assert_array_equal(x, y)
        assert len(np.unique(x)) > 3


def names_of(content):
    model = flatbuffer.read(content)
    return [operator_name(model, x) for x in model.subgraphs[0].operators]


CONVOLUTIONS = [
    {"padding": "same"}, {"padding": "valid", "strides": 2}, {"activation": "relu"},
    {"padding": "same", "strides": (3, 2), "use_bias": False},
]  # fmt: skip


@pytest.mark.parametrize("parts", (1, 2, 3, 5))
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_split_convolutions_compute_the_same(runtime, options, parts):
    _, samples, plain = made((9, 8, 24), [kl.Conv2D(41, 3, **options)])
    content, (row,) = encoded_file(plain, {0: parts})
    assert row["parts"] == parts
    assert names_of(content).count("CONV_2D") == parts
    checked(runtime, plain, content, samples)


@pytest.mark.parametrize("parts", (2, 10, 11, 23, 101))
def test_split_dense_layers_compute_the_same(runtime, parts):
    stack = [kl.Dense(401, activation="relu"), kl.Dense(3)]
    _, samples, plain = made((200,), stack)
    content, rows = encoded_file(plain, {0: parts})
    assert rows[0]["parts"] == parts
    names = names_of(content)
    assert names.count("FULLY_CONNECTED") == parts + 1
    # The runtime concatenates 10 tensors at once.
    assert names.count("CONCATENATION") == 1 + -(-max(0, parts - 10) // 9)
    checked(runtime, plain, content, samples)


@pytest.mark.parametrize("bits", (2, 3, 4, 8))
def test_kernels_of_all_bits_compute_the_same(runtime, bits):
    stack = [
        kl.Conv2D(24, 3, groups=2), kl.Conv2D(20, 3, dilation_rate=2),
        kl.DepthwiseConv2D(3, depth_multiplier=3), kl.Conv2DTranspose(8, 3),
        kl.Flatten(), kl.Dense(12),
    ]  # fmt: skip
    _, samples, plain = made((12, 12, 8), stack, (bits,))
    content, rows = encoded_file(plain, {})
    assert len(rows) == 5 and len(content) <= len(plain)
    checked(runtime, plain, content, samples)


def test_no_kernel_makes_the_file_larger():
    stack = [kl.Conv2D(n, 3, padding="same") for n in (3, 4, 6, 8, 12)]
    _, _, plain = made((8, 8, 4), stack, (2, 4, 8))
    whole, rows = encoded_file(plain, {})
    kernels = stored_kernels(flatbuffer.read(plain))
    positions = [kernel.operators[0] for kernel in kernels]
    assert {row["encoding"] for row in rows} > {"INT8"}
    for position, row in zip(positions, rows, strict=True):
        other, _ = encoded_file(plain, {position: 0})
        if row["encoding"] != "INT8":
            assert len(whole) <= len(other)


@pytest.mark.parametrize("calls, decodes", [(1, 1), (3, 3), (9, 0)])
def test_kernel_of_several_readers_is_encoded_if_it_pays_for_each(
    runtime, calls, decodes
):
    stack = [kl.Dense(30, activation="relu")] * calls
    _, _, plain = made((30,), [*stack, kl.Dense(200)])
    content, (row, _) = encoded_file(plain, {})
    # It saves 600 bytes, and each DECODE takes 96. That of the last layer is one more.
    assert names_of(content).count("TFLM_DECODE") == decodes + 1
    assert row["encoding"] == ("Huffman" if decodes else "INT8")
    check_kernels(runtime, plain, content)


def test_channels_of_zeros_and_equal_kernels_are_encoded(runtime):
    stack = [kl.Conv2D(16, 3, name="zero"), kl.Conv2D(16, 3), kl.Conv2D(16, 3)]
    _, samples, plain = made((9, 9, 16), stack)
    content, rows = encoded_file(plain, {})
    assert rows[0]["bytes"] < 16 * 16 * 9 / 8 + 20
    check_kernels(runtime, plain, content)


def with_changed_buffer(content, place, is_wanted):
    """The file with another byte at a place of each of some buffers."""
    model = flatbuffer.read(content)
    changed = 0
    for buffer in model.buffers:
        if buffer.data is not None and is_wanted(buffer.data):
            buffer.data = np.array(buffer.data)
            buffer.data[place] ^= 1
            changed += 1
    assert changed
    return flatbuffer.write(model)


def test_proof_finds_a_kernel_that_is_decoded_to_other_codes(runtime):
    model, samples, plain = made((9, 8, 6), [kl.Conv2D(40, 3, name="wide")])
    content, _ = encoded_file(plain, {})
    wrong = with_changed_buffer(content, 16, lambda data: bytes(data[:2]) == b"\1\1")
    with pytest.raises(ValueError, match="should decode the kernel 'wide'"):
        prove(runtime, plain, wrong, model, samples)


def test_proof_finds_outputs_that_differ_in_a_bit(runtime):
    model, samples, plain = made((9, 8, 6), [kl.Conv2D(40, 3)])
    content, _ = encoded_file(plain, {})
    wrong = with_changed_buffer(content, 1, lambda data: len(data) == 4 * 40)
    with pytest.raises(ValueError, match="outputs to the bit. Received: \\d+ other"):
        prove(runtime, plain, wrong, model, samples)
