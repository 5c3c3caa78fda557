"""Runtime that the tests of microcontrollers share."""

import importlib.util

import pytest

from tfcompress.micro.runtime import MicroRuntime


@pytest.fixture
def runtime():
    """A `MicroRuntime`; tests that need it are skipped where there is none."""
    if importlib.util.find_spec("tflite_micro") is None:
        pytest.skip("tflite-micro is not installed: `pip install .[micro]`")
    with MicroRuntime() as runtime:
        yield runtime
