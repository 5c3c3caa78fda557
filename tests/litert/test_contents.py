"""Constants of a file."""

import numpy as np
import pytest

from tfcompress.litert import export
from tfcompress.litert.contents import constants


def test_constants_are_the_kernels_and_biases_of_the_model(exported):
    path, model = exported
    kernels = [c for c in constants(path) if c.role == "kernel"]
    assert [(c.name, c.read_by, c.type) for c in kernels] == [
        ("first", "CONV_2D", "INT2"),
        ("middle", "DEPTHWISE_CONV_2D", "INT4"),
        ("last", "CONV_2D", "INT8"),
        ("head", "FULLY_CONNECTED", "INT2"),
    ]
    for constant in kernels:
        layer = model.get_layer(constant.name)
        assert constant.zeros == pytest.approx(np.mean(np.array(layer.codes) == 0))
        assert np.prod(constant.shape) == layer.codes.size
        assert constant.bytes == -(-layer.codes.size * layer.container_bits // 8)
        assert constant.scale_bytes == 4 * np.array(layer.kernel_scale).size
    biases = [c for c in constants(path) if c.role == "bias"]
    assert [(c.type, c.bytes) for c in biases] == [
        ("FLOAT32", 4 * 6),
        ("FLOAT32", 4 * 6),
        ("FLOAT32", 4 * 5),
        ("FLOAT32", 4 * 10),
    ]


def test_constants_of_files_for_latency_have_native_types(digit_model, tmp_path):
    path = tmp_path / "model.tflite"
    export(digit_model, path, optimize="latency")
    kernels = [c for c in constants(path) if c.role == "kernel"]
    assert [c.type for c in kernels] == ["INT8"] * 4
