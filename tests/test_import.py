"""What importing the package asks of a machine."""

import pathlib
import re
import subprocess
import sys

import pytest

import tfcompress as tfc

PACKAGE = pathlib.Path(tfc.__file__).parent
SCRIPT = """
import sys
sys.modules["ai_edge_litert"] = None  # as if it were not installed
import tfcompress as tfc
tfc.layers, tfc.PrunedTernary, tfc.compress, tfc.finalize
try:
    tfc.export
except ModuleNotFoundError as error:
    print(error)
"""


def test_a_machine_that_only_trains_needs_no_litert():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "ai_edge_litert" in result.stdout


def test_the_module_for_tfmot_says_what_it_needs():
    script = """
import sys
sys.modules["tensorflow_model_optimization"] = None  # as if it were not installed
import tfcompress.tfmot
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert "pip install tfcompress[tfmot]" in result.stderr


def test_only_tfmot_modules_import_tensorflow_before_it_is_used():
    importing = [
        path
        for path in PACKAGE.rglob("*.py")
        if re.search(r"^(import|from) tensorflow", path.read_text(), re.MULTILINE)
    ]
    private = PACKAGE / "compat" / "tfmot_private.py"  # imported by these modules only
    assert private in importing
    assert {x.parent for x in importing if x != private} == {PACKAGE / "tfmot"}


def test_public_names():
    for name in tfc.__all__:
        assert getattr(tfc, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'exports'"):
        _ = tfc.exports
