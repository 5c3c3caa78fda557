"""Program that lists the constants of a file."""

import subprocess
import sys

import pytest

from tests.litert.packed_models import make_digit_model
from tfcompress import inspect as program
from tfcompress.inspect import inspect
from tfcompress.litert import export, float_tflite
from tfcompress.litert.contents import constants


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """`(path, model)` of an exported model."""
    path = tmp_path_factory.mktemp("exported") / "digits.tflite"
    model = make_digit_model()
    export(model, path)
    return path, model


def test_inspect_lists_bytes_that_add_up_to_the_file(exported):
    path, _ = exported
    text = inspect(path)
    rows = [line.split() for line in text.splitlines()]
    (rest,) = [row for row in rows if row[:2] == ["graph", "and"]]
    listed = sum(c.bytes + c.scale_bytes for c in constants(path) if c.role)
    large = [c for c in constants(path) if c.bytes >= path.stat().st_size / 1000]
    listed += sum(c.bytes for c in large if not c.role)
    assert int(rest[4].replace(",", "")) == path.stat().st_size - listed
    assert "INT2" in text and "6 x 3 x 3 x 1" in text


def test_inspect_pairs_each_kernel_with_that_of_the_float_file(exported, tmp_path):
    path, model = exported
    other = tmp_path / "float.tflite"
    other.write_bytes(float_tflite(model))
    rows = [line.split() for line in inspect(path, other).splitlines()]
    ratios = {row[0]: row[-2:] for row in rows if row}
    assert ratios["first"] == ["216", "15.4x"]  # 54 weights in 14 bytes
    assert ratios["middle"] == ["216", "8.0x"]
    assert ratios["last"] == ["1,080", "4.0x"]
    assert ratios["digits.tflite"][0].endswith("x")


def test_inspect_runs_as_a_program(exported, tmp_path):
    path, _ = exported
    command = [sys.executable, "-m", "tfcompress.inspect"]
    result = subprocess.run([*command, path], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.rstrip().endswith(inspect(path).splitlines()[-1].strip())


@pytest.mark.parametrize("content", [b"", b"no flatbuffer at all"])
def test_inspect_refuses_other_files_in_one_line(content, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match="inspect: A .tflite file.* is expected"):
        program.main([str(path)])
    with pytest.raises(SystemExit, match="inspect: .*No such file"):
        program.main([str(tmp_path / "absent.tflite")])
