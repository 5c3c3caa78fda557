"""Tables and pictures of docs/results.md: made from reports, the same each time."""

import json
import shutil

import pytest

from benchmarks.make_results import update, with_tables
from benchmarks.results.all_runs import all_runs
from benchmarks.results.pictures import PICTURES
from benchmarks.results.rows import longest, rows_of
from benchmarks.results.run import Places
from benchmarks.results.tables import COLUMNS, table_of_files, table_of_runs
from tests.test_structure import ROOT

DOCS = ROOT / "docs"
EMPTY = "".join(
    f"<!-- table: {name} -->\n<!-- end of table -->\n" for name in [*COLUMNS, "files"]
)


def test_page_and_pictures_are_those_of_the_committed_reports():
    assert update(DOCS, check=True) == []


@pytest.fixture
def docs(tmp_path):
    """A folder with a page without tables, and reports of one run with three seeds."""
    (tmp_path / "reports").mkdir()
    (tmp_path / "results.md").write_text(f"Before\n{EMPTY}After\n")
    return tmp_path


def write_reports(docs, row, accuracies, **changes):
    """Writes the reports of a row's seeds, made from a committed one."""
    source = "pruned_ternary_resnet8_cifar10_12_epochs_held_thresholds"
    report = json.loads((DOCS / "reports" / f"{source}.json").read_text())
    for name, accuracy in accuracies.items():
        report = {**report, **changes, "seed": int(name[-1]) if "seed" in name else 0}
        report["accuracy"] = {**report["accuracy"], "litert": accuracy}
        (docs / "reports" / f"{row}_{name}.json").write_text(json.dumps(report))


def first_row(table, method):
    return next(
        run.row
        for run in all_runs()
        if run.table == table and run.method == method and run.priority
    )


def places_of(docs):
    return Places(docs / "reports", docs, docs)


def test_update_writes_once_and_changes_nothing_again(docs):
    row = first_row("ternary", "pruned ternary")
    accuracies = {"seed0": 0.86, "seed1": 0.87, "seed2": 0.88}
    write_reports(docs, row, accuracies, machine="NVIDIA H200")
    pictures = {docs / "pictures" / name for name in PICTURES}
    assert set(update(docs, check=True)) == {docs / "results.md", *pictures}
    assert not (docs / "pictures").exists()
    assert set(update(docs, check=False)) == {docs / "results.md", *pictures}
    assert update(docs, check=False) == update(docs, check=True) == []

    page = (docs / "results.md").read_text()
    assert page.startswith("Before\n") and page.endswith("After\n")
    line = next(x for x in page.splitlines() if f"`{row}`" in x)
    assert "| 3 | 87.19 ± 0.00 | 87.00 ± 1.00 |" in line
    assert "| NVIDIA H200 |" in line
    assert ", seeds 0, 1, 2" in page

    write_reports(docs, row, {"seed1": 0.86}, machine="NVIDIA H200")
    changed = update(docs, check=True)
    assert changed == [docs / "results.md", docs / "pictures" / "accuracy_bytes.png"]


def test_baseline_has_the_rate_that_held_out_images_chose(docs):
    row = first_row("ternary", "plain TWN")
    write_reports(docs, row, {"seed0": 0.83})
    held_out = {"dataset": "cifar10 (5000 training images held out)"}
    tried = {"rate0.01_held_out": 0.7, "rate0.03_held_out": 0.9}
    write_reports(docs, row, {**tried, "rate0.1_held_out": 0.8}, **held_out)
    table = table_of_runs("ternary", places_of(docs))
    assert "--learning_rate=0.03" in table
    (shown,) = [x for x in table.splitlines() if x.startswith("| ResNet")]
    assert " 83.00 " in shown  # no row of held-out images


def test_table_without_reports_is_its_header(docs):
    for table in COLUMNS:
        assert (
            len(table_of_runs(table, places_of(docs)).split("\n\n")[0].splitlines())
            == 2
        )
    assert "| file |" in table_of_files(places_of(docs))


def test_picture_has_one_point_of_a_method_at_a_budget(docs):
    shutil.copytree(DOCS / "reports", docs / "reports", dirs_exist_ok=True)
    for table in COLUMNS:
        rows = longest(rows_of(table, places_of(docs)))
        keys = [(row.run.network, row.method, row.budget) for row in rows]
        assert len(set(keys)) == len(keys)
    names = {row.name for row in longest(rows_of("ternary", places_of(docs)))}
    assert "pruned_ternary_resnet8_cifar10_60_epochs_mean_threshold" in names
    assert "pruned_ternary_resnet8_cifar10_12_epochs_mean_threshold" not in names


@pytest.mark.parametrize("page", ["", EMPTY + EMPTY, EMPTY.replace("ternary", "other")])
def test_page_without_the_block_of_a_table_is_refused(docs, page):
    with pytest.raises(ValueError, match="one block.*for each of.*Received"):
        with_tables(page, places_of(docs))
