"""The recipe: its flags, and a small run, interrupted, with everything it writes."""

import contextlib
import functools
import io
import re

import keras
import pytest
from absl import flags

from recipes import bit_sharing
from recipes.common import run as run_lib
from tfcompress.litert import check

ARTEFACTS = ["layers.png", "model.keras", "model.tflite", "report.json"]
# Of the float LeNet-5, MACs * 32 * 32.
FLOAT_BOPS = 32 * 32 * (25 * 20 * 24**2 + 500 * 50 * 8**2 + 800 * 500 + 500 * 10)


@pytest.fixture
def recipe(tmp_path, run_recipe):
    """Runs the recipe with flags, writing to `tmp_path / "out"`."""
    return functools.partial(run_recipe, bit_sharing, tmp_path / "out")


@pytest.mark.parametrize("name", ["search_epochs", "finetune_epochs"])
def test_both_phases_have_epochs(recipe, name):
    with pytest.raises(flags.IllegalFlagValueError, match=f"{name}=0"):
        recipe(**{name: 0})


@pytest.mark.parametrize(
    ("bops", "message"),
    [
        ("0", "^bit_sharing: `bops` is a positive count"),
        ("1/0", "^bit_sharing: `bops` is a positive count"),
        ("many", "^bit_sharing: `bops` is a positive count"),
        ("inf", "^bit_sharing: `bops` is a positive count"),
        ("1/10000", "^bit_sharing: .*can be met: 1/.*Received: bops='1/10000'"),
        ("1e5", "^bit_sharing: .*can be met: 1/.*Received: bops=100000.0"),
    ],
)
def test_impossible_budgets_are_refused_in_one_line(
    recipe, few_images, monkeypatch, bops, message
):
    monkeypatch.setattr(run_lib, "fit", None)  # comes before any training
    with pytest.raises(SystemExit, match=message) as exit_:
        recipe(bops=bops)
    assert "\n" not in exit_.value.code


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run_recipe, part_of_mnist5k):
    """A run that was interrupted in its search and started again.

    `(folder, what was printed, the history that was drawn)`.
    """
    folder = tmp_path_factory.mktemp("bit_sharing")
    backup = keras.callbacks.BackupAndRestore
    on_epoch_end = backup.on_epoch_end

    def interrupt_the_student(self, epoch, logs=None):
        on_epoch_end(self, epoch, logs)
        if self.backup_dir.endswith("student"):
            raise KeyboardInterrupt

    def call():
        run_recipe(
            bit_sharing,
            folder,
            bops="1/50",
            search_epochs=2,
            finetune_epochs=1,
            float_epochs=2,
            batch_size=64,
        )

    drawn = []
    plot_gates = bit_sharing.reporting.plot_gates

    def plot_and_keep(epochs, path):
        drawn.extend(epochs)
        plot_gates(epochs, path)

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(printed):
        patched.setattr(run_lib, "load", lambda *_: part_of_mnist5k)
        patched.setattr(bit_sharing.reporting, "plot_gates", plot_and_keep)
        with patched.context() as interrupted:
            interrupted.setattr(backup, "on_epoch_end", interrupt_the_student)
            with pytest.raises(KeyboardInterrupt):
                call()
        call()
    return folder, printed.getvalue(), drawn


def test_everything_is_written(finished, check_report):
    folder, *_ = finished
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted([*ARTEFACTS, "float.keras", "gates.png", "uniform"])
    assert sorted(path.name for path in (folder / "uniform").iterdir()) == ARTEFACTS
    assert (folder / "gates.png").read_bytes().startswith(b"\x89PNG")
    report = check_report(folder)
    assert (report["recipe"], report["scheme"]) == ("bit_sharing", "BitSharing")
    assert report["epochs"] == 3
    assert report["agreement"]["top1"] == 1.0
    check(folder / "model.tflite", keras.models.load_model(folder / "model.keras"))


def test_the_budget_is_met(finished, check_report):
    report = check_report(finished[0])
    budget = report["budget"]
    assert budget["kind"] == "bops"
    assert budget["requested"] == pytest.approx(FLOAT_BOPS / 50)
    assert 0.98 <= budget["achieved"] / budget["requested"] <= 1
    assert report["cost"]["float_bops"] == FLOAT_BOPS
    assert budget["achieved"] == sum(
        layer["macs"] * layer["weight_bits"] * layer["activation_bits"]
        for layer in report["layers"]
    )


def test_the_baseline_has_four_bits(finished, check_report):
    report = check_report(finished[0] / "uniform")
    assert (report["scheme"], report["epochs"]) == ("Uniform", 3)
    assert report["budget"] is None
    bits = [(row["weight_bits"], row["activation_bits"]) for row in report["layers"]]
    assert bits == [(8, 8), (4, 4), (4, 4), (8, 8)]
    assert report["accuracy"]["litert"] > 0.6


def test_an_interrupted_search_goes_on(finished):
    _, printed, history = finished
    assert "Going on with the interrupted run" in printed
    epochs = re.findall(r"Epoch (\d/3)", printed)
    assert epochs == ["1/3", "2/3", "3/3", "1/3", "2/3", "3/3"]  # and the baseline's
    # The interrupted epoch ends before its line is due.
    lines = re.findall(
        r"bits W/A: 8/8 \d/\d \d/\d 8/8  filters: [\d ]+  BOPs: 1/\d", printed
    )
    assert len(lines) == 2
    # The first epoch is not forgotten.
    assert [epoch["searching"] for epoch in history] == [True, True, False]


def test_both_results_are_printed_side_by_side(finished, check_report):
    folder, printed, _ = finished
    table = printed[printed.rindex("scheme") :]
    for part in (folder, folder / "uniform"):
        report = check_report(part)
        row = re.search(rf"{report['scheme']}.*", table)[0]
        assert f"{report['accuracy']['litert']:.4f}" in row
        assert f"{report['cost']['bops']:,}" in row
        assert f"{report['size']['tflite_bytes']:,}" in row
