"""Packed kernels read back from a file."""

import dataclasses

import numpy as np
import pytest

from tfcompress.litert.flatbuffer import read, write
from tfcompress.litert.kernels import Kernel
from tfcompress.litert.stored import KernelTensor, kernel_tensors, recognize
from tfcompress.quantizers.packing import pack

CODES = np.array([[1, 0, -1], [0, -1, 1]], np.int8)  # two weights, three channels
KERNEL = Kernel("dense", CODES, np.array([0.1, 0.2, 0.3], np.float32), 2)


def stored(codes=CODES, scale=KERNEL.scale, bits=2, name="dense"):
    scale = np.asarray(scale, np.float32)
    return KernelTensor(name, f"INT{bits}", bits, (3, 2), pack(codes.T, bits), scale, 0)


def test_kernel_tensor_decodes_codes_to_codes_times_scales():
    tensor = stored()
    np.testing.assert_array_equal(tensor.codes(), CODES.T)
    expected = (CODES * KERNEL.scale).T
    np.testing.assert_array_equal(tensor.decoded(tensor.codes()), expected)


@pytest.mark.parametrize(
    "tensor",
    [
        stored(),
        stored(name="another"),
        stored(scale=[1, 2, 3]),
        stored(codes=CODES * np.int8([1, -1, 1])),
    ],
    ids=["as planned", "other name", "scales with a factor", "negated channel"],
)
def test_recognise_finds_a_kernel(tensor):
    (row,) = recognize([tensor], [KERNEL])
    assert row == {
        "layer": "dense",
        "tensor": tensor.name,
        "type": "INT2",
        "container_bits": 2,
        "shape": [3, 2],
        "bytes": 2,
    }


def test_recognise_unpacks_each_named_tensor_once(monkeypatch):
    unpacked = []
    codes = KernelTensor.codes
    monkeypatch.setattr(
        KernelTensor, "codes", lambda self: unpacked.append(self.name) or codes(self)
    )
    names = ["first", "second", "third"]
    kernels = [dataclasses.replace(KERNEL, layer=name) for name in names]
    rows = recognize([stored(name=name) for name in reversed(names)], kernels)
    assert [row["tensor"] for row in rows] == names
    assert unpacked == names


def test_recognise_lists_all_tensors_of_a_kernel_by_its_name():
    tensors = [stored(), stored(name="another"), stored(scale=[1, 2, 3])]
    assert len(recognize(tensors, [KERNEL])) == 2


@pytest.mark.parametrize(
    "tensor",
    [
        stored(codes=-CODES[::-1]),
        stored(bits=4),
        dataclasses.replace(stored(), shape=(2, 3), axis=1, scale=KERNEL.scale),
    ],
    ids=["other codes", "wider type", "transposed"],
)
def test_recognise_refuses_tensors_of_other_kernels(tensor):
    with pytest.raises(
        ValueError, match="kernel of layer 'dense', 6 codes of .* 2 bits"
    ):
        recognize([tensor], [KERNEL])


def test_recognise_refuses_equal_values_from_other_codes():
    wide = dataclasses.replace(KERNEL, bits=4)
    doubled = stored(codes=2 * CODES, scale=KERNEL.scale / 2, bits=4)
    with pytest.raises(ValueError, match="kernel of layer 'dense'"):
        recognize([doubled], [wide])


def test_recognise_lets_kernels_with_equal_codes_share_a_tensor():
    twin = dataclasses.replace(KERNEL, layer="twin")
    rows = recognize([stored()], [KERNEL, twin])
    assert [(row["layer"], row["tensor"]) for row in rows] == [
        ("dense", "dense"),
        ("twin", "dense"),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": np.zeros(10, np.float32)},
        {"scale": np.full(10, -1, np.float32)},
        {"scale": np.full(10, np.inf, np.float32)},
        {"scale": np.ones(9, np.float32)},
        {"zeroPoint": np.ones(10, np.int64)},
        {"quantizedDimension": 1},
        {"quantizedDimension": 4},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_kernel_tensors_refuse_malformed_tensors(digit_content, changes):
    model = read(digit_content)
    (head,) = [t for t in model.subgraphs[0].tensors if t.name == b"head"]
    for field, value in changes.items():
        setattr(head.quantization, field, value)
    with pytest.raises(
        ValueError, match=r"'head', INT2 of shape \(10, 5\), should|scales fit no axis"
    ):
        kernel_tensors(write(model))


def test_kernel_tensors_refuse_truncated_codes(digit_content):
    model = read(digit_content)
    (head,) = [t for t in model.subgraphs[0].tensors if t.name == b"head"]
    buffer = model.buffers[head.buffer]
    buffer.data = buffer.data[:-1]
    with pytest.raises(ValueError, match="a constant of 50 elements has 12 bytes"):
        kernel_tensors(write(model))
