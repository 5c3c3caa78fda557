"""All runs: those of the committed reports, then the planned ones."""

from benchmarks.results.past import past_runs
from benchmarks.results.planned import planned_runs
from benchmarks.results.run import Run


def all_runs() -> list[Run]:
    """Returns all runs; a run comes after those that it needs."""
    return past_runs() + planned_runs()
