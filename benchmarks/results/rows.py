"""Rows of tables and pictures: the reports of all seeds of a run."""

import dataclasses
import re
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.results.all_runs import all_runs
from benchmarks.results.run import NETWORKS, Places, Run
from benchmarks.results.runner import chosen_rate, load_report

# Method and budget of the baselines that recipes train along with a scheme.
_BESIDE = {
    "Uniform": ("uniform bits", "4 bits"),
    "L1 pruning": ("L1 pruning", ""),
    "Narrow": ("narrow, from scratch", ""),
}
# Machine of the reports that do not name theirs.
_FIRST_MACHINE = "2 CPU cores"


@dataclasses.dataclass
class Row:
    """Reports of one method at one budget, one for each seed.

    Attributes:
        name: str. Name without the seed.
        run: `Run` of the first seed.
        method, budget: str. As tables name them.
        reports: list of dicts, by seed.
        rate: str or None. Learning rate that was chosen on held-out images.
    """

    name: str
    run: Run
    method: str
    budget: str
    reports: list[dict[str, Any]]
    rate: str | None = None

    def values(self, value: Callable[[dict], float]) -> list[float]:
        """Returns `value(report)` of all reports."""
        return [value(report) for report in self.reports]

    def mean(self, value: Callable[[dict], float]) -> float:
        """Returns the mean of `value(report)` over the seeds."""
        return statistics.mean(self.values(value))

    def spread(self, value: Callable[[dict], float]) -> float:
        """Returns the standard deviation over the seeds, 0 for one seed."""
        values = self.values(value)
        return statistics.stdev(values) if len(values) > 1 else 0.0

    @property
    def machine(self) -> str:
        """Kinds of processors that trained."""
        kinds = [x.get("machine", _FIRST_MACHINE) for x in self.reports]
        return ", ".join(dict.fromkeys(kinds))


def rows_of(table: str, places: Places) -> list[Row]:
    """Returns the rows of a table, of all runs that have a report.

    Networks come in the order of `NETWORKS`. Planned runs come before past ones.

    Args:
        table: str. See `Run.table`.
        places: `Places`; only the reports are read.
    """
    rows: dict[str, Row] = {}
    for run in all_runs():
        if run.table != table:
            continue
        for name in run.outputs:
            report = load_report(places, name)
            if report is None:
                continue
            key = re.sub(r"_seed\d+$", "", name)
            if key not in rows:
                method, budget = run.method, run.budget
                if name != run.name:
                    method, other = _BESIDE[report["scheme"]]
                    budget = other or budget
                rate = chosen_rate(run, places)
                rows[key] = Row(key, run, method, budget, [], rate)
            rows[key].reports.append(report)
    order = list(NETWORKS)
    return sorted(
        rows.values(),
        key=lambda row: (order.index(row.run.network), row.run.priority == 0),
    )


def longest(rows: Iterable[Row]) -> list[Row]:
    """Returns one row of each network, method and budget, chosen without its accuracy.

    Planned runs come before past ones. Then the most epochs count, then runs without
    distillation, and of the latest revision. Of equal ones the last is taken.
    """

    def rank(row):
        run = row.run
        return run.priority > 0, run.epochs, not run.flags.get("distill"), not run.past

    found: dict[tuple, Row] = {}
    for row in rows:
        key = row.run.network, row.method, row.budget
        if key not in found or rank(row) >= rank(found[key]):
            found[key] = row
    return list(found.values())
