"""Trainings of `docs/results.md`, one after the other: `python -m benchmarks.suite`.

Each run calls a recipe in a process of its own, and its report becomes
`docs/reports/NAME.json`. A run whose report exists is skipped. An interrupted one goes
on when it is started again.

    python -m benchmarks.suite --list
    python -m benchmarks.suite --only=resnet8 --priority=1
    python -m benchmarks.suite --only='^twn_resnet8.*seed0$' --dry_run

With `--backend=jax` recipes train on JAX, with TensorFlow for the data, and
TensorFlow exports afterwards. `--noexport` leaves that to another machine: copy
`--work_dir` there, and start the same command without `--backend`.
`python -m benchmarks.make_results` writes the tables and pictures.
"""

import pathlib
import re
import shlex
import sys

from absl import app, flags

from benchmarks.results.all_runs import all_runs
from benchmarks.results.run import Places
from benchmarks.results.runner import (
    DONE,
    PAST,
    WAITING,
    Runner,
    command_of,
    missing,
    state_of,
)

FLAGS = flags.FLAGS

flags.DEFINE_string("only", "", "Regular expression that names of runs contain.")
flags.DEFINE_integer("priority", None, "Only runs of this priority, 1 to 3.")
flags.DEFINE_boolean("list", False, "Print the runs, and how far they are.")
flags.DEFINE_boolean("dry_run", False, "Print the commands of runs without a report.")
flags.DEFINE_enum(
    "backend", "tensorflow", ["tensorflow", "jax"], "Keras backend that trains."
)
flags.DEFINE_boolean("export", True, "Export what JAX has trained.")
flags.DEFINE_string("output_dir", "docs/reports", "Folder of the reports.")
flags.DEFINE_string("work_dir", "saved_models/suite", "Folder of all other files.")
flags.DEFINE_string(
    "models_dir",
    "saved_models/pretrained",
    "Folder of resnet8_cifar10.h5 (of MLPerf Tiny), resnet20_cifar10.keras and "
    "resnet56_cifar10.keras (Idelbayev's weights).",
)
flags.DEFINE_string("data_dir", None, "TensorFlow Datasets folder.")


@flags.validator("only", "expected a regular expression")
def _is_pattern(value):
    try:
        re.compile(value)
    except re.error:
        return False
    return True


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Expected only --flags. Received: {argv[1:]}.")
    places = Places(
        pathlib.Path(FLAGS.output_dir),
        pathlib.Path(FLAGS.work_dir),
        pathlib.Path(FLAGS.models_dir),
        FLAGS.data_dir,
    )
    runs = [
        run
        for run in all_runs()
        if re.search(FLAGS.only, run.name) and FLAGS.priority in (None, run.priority)
    ]
    if not runs:
        sys.exit(f"suite: no run of --only={FLAGS.only} --priority={FLAGS.priority}.")
    if FLAGS.list:
        _print_list(runs, places)
    elif FLAGS.dry_run:
        _print_commands(runs, places)
    else:
        _make(runs, places)


def _print_list(runs, places):
    left = 0.0
    for run in runs:
        state = state_of(run, places)
        left += 0 if state in (DONE, PAST) else run.estimate()
        minutes = run.estimate() / 60
        print(f"{run.name:70} priority {run.priority}  {minutes:5.0f} min  {state}")
    print(f"{len(runs)} runs; about {left / 3600:.1f} h left on two quiet CPU cores.")


def _print_commands(runs, places):
    for run in runs:
        if state_of(run, places) not in (DONE, PAST):
            print(f"# {run.name}, about {run.estimate() / 60:.0f} min on two CPU cores")
            print(shlex.join(["python", *command_of(run, places)[1:]]))


def _make(runs, places):
    needed = {str(run.all_flags()["model"]) for run in runs if not run.past}
    files = [x.replace("{models}", str(places.models)) for x in needed if "{mod" in x]
    absent = [file for file in files if not pathlib.Path(file).exists()]
    if absent:
        sys.exit(f"suite: expected --models_dir to have {', '.join(sorted(absent))}.")
    runner = Runner(places, FLAGS.backend, FLAGS.export)
    for number, run in enumerate(runs, start=1):
        if state_of(run, places) not in (DONE, PAST):
            title = f"[{number}/{len(runs)}] {run.name}"
            print(f"{title}, about {run.estimate() / 60:.0f} min", flush=True)
        state = runner.make(run)
        if state == WAITING:
            print(f"{run.name}: waits for {', '.join(missing(run, places))}.")
        elif state == PAST:
            print(f"{run.name}: made by {run.past}; not started.")
    if runner.failed:
        sys.exit(f"suite: {len(runner.failed)} failed: {', '.join(runner.failed)}.")


if __name__ == "__main__":
    app.run(main)
