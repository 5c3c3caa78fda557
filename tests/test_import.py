"""Import of the package, its public names, and the packages that an import needs."""

import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import tfcompress as tfc

PACKAGE = pathlib.Path(tfc.__file__).parent
SCRIPT = """
import sys
sys.modules["ai_edge_litert"] = None  # as if it were not installed
import tfcompress as tfc
tfc.layers, tfc.PrunedTernary, tfc.compress, tfc.finalize
for name in ("export", "litert"):
    try:
        getattr(tfc, name)
    except ModuleNotFoundError as error:
        print(error)
"""


def test_import_for_training_needs_no_litert():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    export, litert = result.stdout.splitlines()
    assert "`tfcompress.export` needs" in export and "ai_edge_litert" in export
    assert "`tfcompress.litert` needs" in litert and "ai_edge_litert" in litert


def test_litert_is_found_and_tfmot_names_the_extra_that_it_needs():
    """In one process in which nothing has imported them: each takes seconds."""
    script = """
import sys
import tfcompress as tfc
print(tfc.litert.predict.__name__)
sys.modules["tensorflow_model_optimization"] = None  # as if it were not installed
import tfcompress.tfmot
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert result.stdout.split() == ["predict"], result.stderr
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


def test_public_names_exist_and_unknown_names_raise():
    for name in tfc.__all__:
        assert getattr(tfc, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'exports'"):
        _ = tfc.exports


def test_dir_lists_all_public_names_and_so_the_lazy_ones():
    assert set(tfc.__all__) <= set(dir(tfc))
    assert {"export", "litert"} <= set(dir(tfc))


def test_version_has_one_source_from_which_the_package_is_built():
    assert re.fullmatch(r"\d+\.\d+\.\d+", tfc.__version__)
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    source = project["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert source == "tfcompress.version.__version__"
    text = (PACKAGE / "version.py").read_text()
    assert f'__version__ = "{tfc.__version__}"' in text
    assert "import " not in text
