"""The suite of trainings: its list, the flags of its runs, and how they are made."""

import importlib
import json
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks.results.all_runs import all_runs
from benchmarks.results.past import OF_BENCHMARKS
from benchmarks.results.run import NETWORKS, Places, Run, flag_arguments
from benchmarks.results.runner import (
    DONE,
    INTERRUPTED,
    NEW,
    PAST,
    TRAINED,
    WAITING,
    Runner,
    chosen_rate,
    command_of,
    state_of,
)
from tests.test_structure import ROOT

RUNS = all_runs()
REPORTS = {path.stem: path for path in (ROOT / "docs" / "reports").glob("*.json")}
RECIPES = sorted({run.module for run in RUNS if run.module.startswith("recipes.")})
SHARED = {"recipes.common.flags", "recipes.common.strategy"}


def test_names_of_runs_and_reports_are_unique():
    names = [run.name for run in RUNS]
    outputs = [name for run in RUNS for name in run.outputs]
    assert len(set(names)) == len(names)
    assert len(set(outputs)) == len(outputs)


def test_committed_reports_are_those_of_runs_or_benchmarks():
    known = {name for run in RUNS for name in run.outputs}
    assert known.isdisjoint(OF_BENCHMARKS)
    assert set(REPORTS) <= known | set(OF_BENCHMARKS)


def test_committed_reports_are_of_the_seed_epochs_and_recipe_of_their_run():
    for run in RUNS:
        for name in run.outputs:
            if name in REPORTS and run.module.startswith("recipes."):
                report = json.loads(REPORTS[name].read_text())
                received = report["recipe"], report["seed"], report["epochs"]
                expected = run.module.removeprefix("recipes."), run.seed, run.epochs
                assert received == expected, name


def test_runs_come_after_those_that_they_need():
    seen = set()
    for run in RUNS:
        assert seen.issuperset([*run.rates, *run.after]), run.name
        assert not run.past or run.name in REPORTS
        seen.add(run.name)


def test_rates_are_chosen_among_three_held_out_runs_of_the_same_method():
    runs = {run.name: run for run in RUNS}
    with_choice = [run for run in RUNS if run.rates]
    assert with_choice
    for run in with_choice:
        tried = [runs[name] for name in run.rates]
        rates = {choice.flags["learning_rate"] for choice in tried}
        assert len(rates) == 3
        for choice in tried:
            assert choice.flags["holdout"] and not choice.table
            assert choice.flags["learning_rate"] in choice.name
            same = ("module", "network", "method", "epochs")
            for attribute in same:
                assert getattr(choice, attribute) == getattr(run, attribute)


def test_methods_of_a_network_have_the_same_epochs_and_distillation():
    for key in ("resnet8", "resnet20", "resnet56"):
        recipes = [
            run for run in RUNS if run.network == key and run.priority and run.epochs
        ]
        assert {run.epochs for run in recipes} == {NETWORKS[key].epochs}
        assert {bool(run.flags.get("distill")) for run in recipes} == {
            NETWORKS[key].distill
        }


@pytest.mark.parametrize("module", RECIPES)
def test_flags_of_runs_are_valid_for_their_recipe(module, tmp_path):
    recipe = importlib.import_module(module)
    modules = {getattr(value, "__name__", "") for value in vars(recipe).values()}
    modules |= {module, *SHARED}
    places = Places(tmp_path / "reports", tmp_path / "work", tmp_path)
    for run in RUNS:
        if run.module != module:
            continue
        arguments = flag_arguments(run, places, rate="0.1")
        values = dict(x.removeprefix("--").partition("=")[::2] for x in arguments)
        model = values["model"]
        if "/" in model:
            (tmp_path / model).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / model).touch()
        with flagsaver.flagsaver():
            flags.FLAGS([module, *arguments])
            schemes = recipe.make_schemes()
        assert len(schemes) <= 1 + bool(values.get("uniform_baseline") == "")
        for name in values:
            defined = flags.FLAGS.find_module_defining_flag(name.removeprefix("no"))
            assert (
                defined in modules
                or flags.FLAGS.find_module_defining_flag(name) in modules
            ), (run.name, name)


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path / "reports", tmp_path / "work", tmp_path / "models")


def a_run(name="one_seed0", **more):
    flags_of_run = {"epochs": 1, "learning_rate": 0.1}
    start = (name, "recipes.pruned_ternary", "lenet5", "ternary", "", flags_of_run, 1)
    return Run(*start, **more)


class FakeRecipe:
    """Executes commands: writes the report of a run, or stops as `ends` says."""

    def __init__(self, run, places):
        self.run, self.folder = run, places.folder(run)
        self.ends = "done"
        self.calls = []

    def __call__(self, command, environment):
        self.calls.append((command[2], environment["KERAS_BACKEND"]))
        assert f"--output_dir={self.folder}" in command
        unfinished = self.folder / "unfinished_run"
        if self.ends == "killed":
            unfinished.mkdir(exist_ok=True)
            return 137
        if unfinished.exists():
            unfinished.rmdir()
        waiting = self.folder / "unexported.json"
        if environment["KERAS_BACKEND"] == "jax":
            waiting.write_text("{}")
            return 0
        waiting.unlink(missing_ok=True)
        for path in self.run.outputs.values():
            (self.folder / path).parent.mkdir(exist_ok=True)
            (self.folder / path).write_text('{"accuracy": {"litert": 0.5}}')
        return 0


def test_run_is_made_once_and_skipped_from_then_on(places):
    run = a_run(outputs={"one": "report.json", "other": "uniform/report.json"})
    recipe = FakeRecipe(run, places)
    runner = Runner(places, execute=recipe)
    assert state_of(run, places) == NEW
    assert runner.make(run) == DONE
    assert runner.make(run) == DONE
    assert recipe.calls == [("recipes.pruned_ternary", "tensorflow")]
    assert {x.name for x in places.reports.iterdir()} == {"one.json", "other.json"}


def test_killed_run_goes_on_with_the_same_command(places):
    run = a_run()
    recipe = FakeRecipe(run, places)
    runner = Runner(places, execute=recipe)
    recipe.ends = "killed"
    runner.make(run)
    assert state_of(run, places) == INTERRUPTED
    assert runner.failed == [run.name]
    assert not places.report(run.name).exists()
    recipe.ends = "done"
    assert runner.make(run) == DONE
    assert recipe.calls[0] == recipe.calls[1]


def test_report_that_was_not_copied_is_copied_without_training(places):
    run = a_run()
    recipe = FakeRecipe(run, places)
    assert Runner(places, execute=recipe).make(run) == DONE
    places.report(run.name).unlink()
    assert state_of(run, places) == TRAINED
    assert Runner(places, execute=recipe).make(run) == DONE
    assert len(recipe.calls) == 1
    assert places.report(run.name).exists()


def test_training_on_jax_is_exported_with_tensorflow_at_once_or_later(places):
    train = ("recipes.pruned_ternary", "jax")
    export = ("recipes.export", "tensorflow")
    run = a_run()
    recipe = FakeRecipe(run, places)
    assert Runner(places, "jax", execute=recipe).make(run) == DONE
    assert recipe.calls == [train, export]

    later = a_run("later_seed0")
    recipe = FakeRecipe(later, places)
    assert Runner(places, "jax", False, recipe).make(later) == TRAINED
    assert recipe.calls == [train]
    assert Runner(places, execute=recipe).make(later) == DONE
    assert recipe.calls == [train, export]


def test_past_run_without_a_report_is_not_started(places):
    run = a_run(past="an earlier revision")
    recipe = FakeRecipe(run, places)
    assert Runner(places, execute=recipe).make(run) == PAST
    assert recipe.calls == []


def write_choices(
    places, accuracies, dataset="cifar10 (5000 training images held out)"
):
    places.reports.mkdir(exist_ok=True)
    names = tuple(f"one_rate{rate}_held_out" for rate in accuracies)
    for name, accuracy in zip(names, accuracies.values(), strict=True):
        report = {"dataset": dataset, "accuracy": {"litert": accuracy}}
        places.report(name).write_text(json.dumps(report))
    return names


def test_learning_rate_is_the_best_on_held_out_images(places):
    names = write_choices(places, {"0.01": 0.7, "0.03": 0.9, "0.1": 0.8})
    run = a_run(rates=names)
    assert chosen_rate(run, places) == "0.03"
    assert "--learning_rate=0.03" in command_of(run, places)


def test_run_waits_for_the_choice_of_its_rate_and_for_files(places):
    names = write_choices(places, {"0.01": 0.7, "0.03": 0.9})
    run = a_run(rates=(*names, "one_rate0.1_held_out"))
    recipe = FakeRecipe(run, places)
    assert Runner(places, execute=recipe).make(run) == WAITING
    assert "--learning_rate=RATE" in command_of(run, places)
    chained = a_run(after=("source_seed0",))
    assert Runner(places, execute=recipe).make(chained) == WAITING
    (places.work / "source_seed0").mkdir(parents=True)
    (places.work / "source_seed0" / "model.keras").touch()
    assert state_of(chained, places) == NEW
    assert recipe.calls == []


def test_learning_rate_is_never_chosen_on_test_images(places):
    names = write_choices(places, {"0.01": 0.7, "0.03": 0.9}, dataset="cifar10")
    with pytest.raises(ValueError, match="held-out.*Received: one_rate0.01.*cifar10"):
        chosen_rate(a_run(rates=names), places)


@pytest.mark.parametrize(
    ("arguments", "status", "printed"),
    [
        (["--list", "--only=stock"], 0, "stock_resnet8_cifar10"),
        (["--dry_run", "--only=chain_resnet8.*seed1"], 0, "'--size=12 kB'"),
        (["--only=nothing_of_this_name"], 1, "no run of --only=nothing_of_this_name"),
        (["--only=("], 1, "expected a regular expression"),
        (["--only=twn_resnet8", "--models_dir=no"], 1, "no/resnet8_cifar10.h5"),
    ],
)
def test_suite_lists_prints_and_refuses(tmp_path, arguments, status, printed):
    command = [sys.executable, "-m", "benchmarks.suite", f"--work_dir={tmp_path}"]
    command += [f"--output_dir={tmp_path}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == status, done.stderr
    assert printed in done.stdout + done.stderr
