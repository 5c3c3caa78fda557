"""The promises of CONTRIBUTING about files, folders, functions and private APIs."""

import ast
import pathlib
import re

import pytest

import tfcompress as tfc

PACKAGE = pathlib.Path(tfc.__file__).parent
ROOT = PACKAGE.parent
FILES = [
    path
    for folder in ("tfcompress", "recipes", "benchmarks", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
LIBRARY = [path for path in FILES if PACKAGE in path.parents]


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_have_at_most_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_have_at_most_60_lines_of_code(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            code = node.body[1:] if ast.get_docstring(node) else node.body
            lines = code[-1].end_lineno - code[0].lineno + 1 if code else 0
            assert lines <= 60, f"{node.name}: {lines} lines"


def test_folders_have_at_most_14_files():
    counts = {}
    for path in FILES:
        counts[path.parent] = counts.get(path.parent, 0) + 1
    assert {name_of(x): n for x, n in counts.items() if n > 14} == {}


@pytest.mark.parametrize(
    "path", [x for x in LIBRARY if x.parent != PACKAGE / "compat"], ids=name_of
)
def test_private_apis_stand_in_compat_alone(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    private = {x.attr for x in attributes if re.match(r"_[a-z]", x.attr)}
    stored = {x.attr for x in attributes if isinstance(x.ctx, ast.Store)}
    methods = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    assert private <= stored | methods
    modules = [x.module or "" for x in nodes if isinstance(x, ast.ImportFrom)]
    assert not [x for x in modules if re.search(r"\.(src|python|_\w+)\b", x)]
