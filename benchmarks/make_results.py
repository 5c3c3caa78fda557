"""Tables and pictures of `docs/results.md`: `python -m benchmarks.make_results`.

They come from the reports in `docs/reports` alone. A table stands between `<!-- table:
NAME -->` and `<!-- end of table -->`; all other text stays. With `--check` nothing is
written, and the exit status is 1 if anything would change.
"""

import pathlib
import re
import sys

from absl import app, flags

from benchmarks.results.pictures import PICTURES, update_picture
from benchmarks.results.run import Places
from benchmarks.results.tables import COLUMNS, table_of_files, table_of_runs

FLAGS = flags.FLAGS

flags.DEFINE_boolean("check", False, "Only tell whether anything would change.")
flags.DEFINE_string("docs_dir", "docs", "Folder of results.md, reports/ and pictures/.")

_BLOCK = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end of table -->", re.DOTALL)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Expected only --flags. Received: {argv[1:]}.")
    try:
        changed = update(pathlib.Path(FLAGS.docs_dir), FLAGS.check)
    except ValueError as error:
        sys.exit(f"make_results: {error}")
    for path in changed:
        print(f"{'Out of date' if FLAGS.check else 'Written'}: {path}")
    if FLAGS.check and changed:
        sys.exit("make_results: call `python -m benchmarks.make_results`.")


def update(docs: pathlib.Path, check: bool) -> list[pathlib.Path]:
    """Brings the page and the pictures up to date with the reports.

    Args:
        docs: `pathlib.Path` of the folder with `results.md` and `reports/`.
        check: bool. Whether to compare only.

    Returns:
        Paths of the files that are written, or would be.

    Raises:
        ValueError: if the page has not one block for each table.
    """
    places = Places(docs / "reports", docs, docs)
    page = docs / "results.md"
    before = page.read_text()
    after = with_tables(before, places)
    changed = [page] if after != before else []
    if changed and not check:
        page.write_text(after)
    for name in PICTURES:
        path = docs / "pictures" / name
        if update_picture(name, places, path, check):
            changed.append(path)
    return changed


def with_tables(page: str, places: Places) -> str:
    """Returns the text of the page with new tables, see `update`."""
    expected = [*COLUMNS, "files"]
    received = [match[1] for match in _BLOCK.finditer(page)]
    if sorted(received) != sorted(expected):
        raise ValueError(
            "Expected results.md to have one block `<!-- table: NAME -->` ... "
            f"`<!-- end of table -->` for each of {expected}. Received: {received}."
        )

    def block(match):
        name = match[1]
        is_files = name == "files"
        table = table_of_files(places) if is_files else table_of_runs(name, places)
        return f"<!-- table: {name} -->\n\n{table}\n\n<!-- end of table -->"

    return _BLOCK.sub(block, page)


if __name__ == "__main__":
    app.run(main)
