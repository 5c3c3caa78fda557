import subprocess
import sys

import numpy as np
import pytest

from tfcompress import inspect as program
from tfcompress.inspect import inspect
from tfcompress.litert import export, float_tflite
from tfcompress.litert.contents import constants


def test_constants_are_those_of_the_model(exported):
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


def test_bytes_add_up_to_the_file(exported):
    path, _ = exported
    text = inspect(path)
    rows = [line.split() for line in text.splitlines()]
    (rest,) = [row for row in rows if row[:2] == ["graph", "and"]]
    listed = sum(c.bytes + c.scale_bytes for c in constants(path) if c.role)
    large = [c for c in constants(path) if c.bytes >= path.stat().st_size / 1000]
    listed += sum(c.bytes for c in large if not c.role)
    assert int(rest[4].replace(",", "")) == path.stat().st_size - listed
    assert "INT2" in text and "6 x 3 x 3 x 1" in text


def test_against_the_float_file_each_kernel_finds_its_own(exported, tmp_path):
    path, model = exported
    other = tmp_path / "float.tflite"
    other.write_bytes(float_tflite(model))
    rows = [line.split() for line in inspect(path, other).splitlines()]
    ratios = {row[0]: row[-2:] for row in rows if row}
    assert ratios["first"] == ["216", "15.4x"]  # 54 weights in 14 bytes
    assert ratios["middle"] == ["216", "8.0x"]
    assert ratios["last"] == ["1,080", "4.0x"]
    assert ratios["digits.tflite"][0].endswith("x")


def test_files_for_latency_too(digit_model, tmp_path):
    path = tmp_path / "model.tflite"
    export(digit_model, path, optimize="latency")
    kernels = [c for c in constants(path) if c.role == "kernel"]
    assert [c.type for c in kernels] == ["INT8", "INT8", "INT8", "INT4"]


def test_as_a_program(exported, tmp_path):
    path, _ = exported
    command = [sys.executable, "-m", "tfcompress.inspect"]
    result = subprocess.run([*command, path], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.rstrip().endswith(inspect(path).splitlines()[-1].strip())


@pytest.mark.parametrize("content", [b"", b"no flatbuffer at all"])
def test_other_files_are_refused_in_one_line(content, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match="inspect: A .tflite file.* is expected"):
        program.main([str(path)])
    with pytest.raises(SystemExit, match="inspect: .*No such file"):
        program.main([str(tmp_path / "absent.tflite")])
