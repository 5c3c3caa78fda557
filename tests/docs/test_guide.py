"""The code of the guide and of the page on models, run as a reader would run it."""

import ast
import contextlib
import io
import pathlib
import re

import pytest

import tfcompress as tfc

ROOT = pathlib.Path(tfc.__file__).parent.parent
# A block of code, and the block of its output where one follows.
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:\n\n^```text\n(?P<output>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)


def run_blocks(path, text, namespace):
    """Runs the blocks of a page in order, in one namespace.

    Args:
        path: path of the page, for tracebacks.
        text: str. The page.
        namespace: dict. Names that the code may read.

    Raises:
        AssertionError: if a block prints other text than its block of output.
        Exception: any that a block raises, with a note of the block's line.
    """
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code"))
        printed = io.StringIO()
        try:
            code = compile("\n" * line + block["code"], str(path), "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
            if block["output"] is not None:
                assert printed.getvalue().split() == block["output"].split()
        except Exception as error:
            error.add_note(f"In the block of code at {path}:{line + 1}.")
            raise


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_code_of_the_guide_and_of_the_page_on_models_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "guide"}
    for name in ("guide.md", "models.md"):  # the second continues the first
        path = ROOT / "docs" / name
        run_blocks(path, path.read_text(), namespace)


def library_texts():
    """The texts in the library's code; a value in them is "..."."""
    texts = []
    for path in pathlib.Path(tfc.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", "") for part in node.values]
                texts.append("...".join(x if isinstance(x, str) else "" for x in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_messages_of_the_guide_are_those_of_the_library():
    table = (ROOT / "docs" / "guide.md").read_text().split("## Errors and warnings")[1]
    messages = re.findall(r'^\| "(.*?)" \|', table, re.MULTILINE)
    assert len(messages) >= 10
    texts = library_texts()
    for message in messages:
        pattern = re.compile(".*".join(map(re.escape, message.split("..."))), re.DOTALL)
        assert any(map(pattern.search, texts)), message
