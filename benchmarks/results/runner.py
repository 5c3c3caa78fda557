"""Makes runs one after the other; each is skipped, resumed or exported as it stands."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.results.run import Places, Run, flag_arguments

DONE = "done"
PAST = "past"
WAITING = "waiting"
TRAINED = "trained"
INTERRUPTED = "interrupted"
NEW = "new"

# Files of a recipe: its backups while it runs, and the facts of a training on JAX.
_UNFINISHED = "unfinished_run"
_UNEXPORTED = "unexported.json"


def accuracy_of(report: dict[str, Any]) -> float:
    """Returns the accuracy of a recipe's report, in LiteRT, a fraction."""
    return report["accuracy"]["litert"]


def load_report(places: Places, name: str) -> dict[str, Any] | None:
    """Returns a committed report, or None if there is none."""
    path = places.report(name)
    return json.loads(path.read_text()) if path.exists() else None


def chosen_rate(run: Run, places: Places) -> str | None:
    """Returns the learning rate of the best of `run.rates`, as its name says it.

    The accuracies are of held-out training images. Of equal ones the first is taken.

    Returns:
        str; None if no runs choose it, or if a report of theirs is missing.

    Raises:
        ValueError: if a report of theirs is not of held-out images.
    """
    reports = {name: load_report(places, name) for name in run.rates}
    if not reports or None in reports.values():
        return None
    for name, report in reports.items():
        if "held out" not in report["dataset"]:
            raise ValueError(
                "A learning rate is chosen on held-out training images. Received: "
                f"{name}, measured on {report['dataset']}."
            )
    best = max(reports, key=lambda name: accuracy_of(reports[name]))
    return best.split("_rate")[1].split("_")[0]


def state_of(run: Run, places: Places) -> str:
    """Returns how far a run is: one of the constants above."""
    if all(places.report(name).exists() for name in run.outputs):
        return DONE
    if run.past:
        return PAST
    folder = places.folder(run)
    if folder.exists() and not (folder / _UNFINISHED).exists():
        if list(folder.rglob(_UNEXPORTED)) or _has_outputs(run, places):
            return TRAINED
    elif folder.exists():
        return INTERRUPTED
    return WAITING if missing(run, places) else NEW


def missing(run: Run, places: Places) -> list[str]:
    """Returns the names of the runs that have to be made before a run."""
    rates = [name for name in run.rates if not places.report(name).exists()]
    after = [
        name for name in run.after if not (places.work / name / "model.keras").exists()
    ]
    return rates + after


def command_of(run: Run, places: Places) -> list[str]:
    """Returns the command that makes a run, as a list of arguments."""
    flags = flag_arguments(run, places, chosen_rate(run, places))
    return [sys.executable, "-m", run.module, *flags, *_folders(run, places)]


@dataclasses.dataclass
class Runner:
    """Makes runs, each in a process of its own.

    Args:
        places: `Places`.
        backend: str. Keras backend that trains, "tensorflow" or "jax".
        export: bool. Whether to export what JAX has trained.
        execute: function of (command, environment) that returns the exit status.

    Attributes:
        failed: list of str. Names of the runs that failed.
    """

    places: Places
    backend: str = "tensorflow"
    export: bool = True
    execute: Callable[[Sequence[str], dict[str, str]], int] | None = None
    failed: list[str] = dataclasses.field(default_factory=list)

    def make(self, run: Run) -> str:
        """Makes a run as far as it can be made now, and returns its state."""
        state = state_of(run, self.places)
        if state in (DONE, PAST, WAITING):
            return state
        folder = self.places.folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        is_recipe = run.module.startswith("recipes.")
        backend = self.backend if is_recipe else "tensorflow"
        if state != TRAINED and not self._start(
            command_of(run, self.places), backend, run
        ):
            return state
        if list(folder.rglob(_UNEXPORTED)):
            if not self.export:
                return TRAINED
            if not self._start(export_command(run, self.places), "tensorflow", run):
                return TRAINED
        if not _has_outputs(run, self.places):
            print(f"{run.name}: the recipe ended without {list(run.outputs.values())}.")
            self.failed.append(run.name)
            return state
        self._publish(run)
        return DONE

    def _start(self, command, backend, run):
        execute = self.execute or _execute
        status = execute(command, {**os.environ, "KERAS_BACKEND": backend})
        if status:
            print(f"{run.name}: failed with exit status {status}.")
            self.failed.append(run.name)
        return status == 0

    def _publish(self, run):
        """Copies the reports to their folder, each whole or not at all."""
        self.places.reports.mkdir(parents=True, exist_ok=True)
        for name, path in run.outputs.items():
            target = self.places.report(name)
            aside = target.with_suffix(".new")
            shutil.copyfile(self.places.folder(run) / path, aside)
            os.replace(aside, target)


def export_command(run: Run, places: Places) -> list[str]:
    """Returns the command that exports what JAX has trained."""
    names = ("model", "dataset", "input_scaling", "batch_size", "holdout")
    flags = [
        flag
        for flag in flag_arguments(run, places)
        if flag.removeprefix("--").split("=")[0] in names
    ]
    return [
        *(sys.executable, "-m", "recipes.export"),
        *flags,
        *_folders(run, places),
    ]


def _folders(run, places):
    data = [f"--data_dir={places.data}"] if places.data else []
    return [*data, f"--output_dir={places.folder(run)}"]


def _has_outputs(run, places):
    folder = places.folder(run)
    return all((folder / path).exists() for path in run.outputs.values())


def _execute(command, environment):
    return subprocess.run(command, env=environment).returncode
