"""The page on recovery names tests that exist."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_page_on_recovery_names_tests_that_exist():
    page = (ROOT / "docs" / "recovery.md").read_text()
    rows = [x for x in page.splitlines() if x.startswith("| ")]
    rows = [x for x in rows if x != "| What happens | Test |"]
    tests = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    for row in rows:
        _, cell = row.strip("| ").rsplit("|", 1)
        names = re.findall(r"`(test_\w+|tests/[\w/.]+)`", cell)
        assert names, row
        for name in names:
            is_file = name.endswith(".py")
            assert (ROOT / name).exists() if is_file else f"def {name}(" in tests, name
