"""Recipe for bits and filters: its flags, and the files of a small interrupted run."""

import contextlib
import io
import json
import re

import keras
import pytest
from absl import flags

from recipes import bit_sharing
from recipes.common import run as run_lib
from tfcompress.litert import check

ARTEFACTS = ["layers.png", "model.keras", "model.tflite", "report.json"]
# MACs * 32 * 32 of the small network.
FLOAT_BOPS = 32 * 32 * ((5 * 5 * 1 * 8) * 12**2 + (5 * 5 * 8 * 16) * 4**2 + 256 * 10)


def test_a_fine_tuning_without_epochs_is_refused(run_recipe, tmp_path):
    with pytest.raises(flags.IllegalFlagValueError, match="finetune_epochs=0"):
        run_recipe(bit_sharing, tmp_path, finetune_epochs=0)


def test_a_training_without_a_search_writes_all_files(
    run_recipe, part_of_mnist5k, tmp_path, monkeypatch
):
    monkeypatch.setattr(run_lib, "load", lambda *_: part_of_mnist5k)
    run_recipe(
        bit_sharing,
        tmp_path,
        model="small",
        bops="1/50",
        search_epochs=0,
        finetune_epochs=1,
        float_epochs=1,
        batch_size=64,
        uniform_baseline=False,
    )
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted([*ARTEFACTS, "float.keras", "gates.png"])
    budget = json.loads((tmp_path / "report.json").read_text())["budget"]
    assert 0.98 <= budget["achieved"] / budget["requested"] <= 1.0


@pytest.mark.parametrize(
    ("bops", "message"),
    [
        ("0", "^bit_sharing: `bops` is a count of at least 1"),
        ("1/0", "^bit_sharing: `bops` is a count of at least 1"),
        ("many", "^bit_sharing: `bops` is a count of at least 1"),
        ("inf", "^bit_sharing: `bops` is a count of at least 1"),
        ("1/10000", "^bit_sharing: .*can be met: 1/.*Received: bops='1/10000'"),
        ("1e5", "^bit_sharing: .*can be met: 1/.*Received: bops=100000.0"),
    ],
)
def test_an_impossible_bops_budget_is_refused(refuses, bops, message):
    refuses(bit_sharing, message, bops=bops)


@pytest.mark.parametrize("bits", ["1,2", "2,4.5", "many", ""])
def test_other_bits_are_refused(refuses, bits):
    message = "^bit_sharing: `weight_bits` are .*from 2 to 8"
    refuses(bit_sharing, message, candidates=bits)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run_recipe, part_of_mnist5k, interrupted_students):
    """`(folder, printed text, plotted history)` of a run interrupted in its search."""
    folder = tmp_path_factory.mktemp("bit_sharing")

    def call():
        run_recipe(
            bit_sharing,
            folder,
            model="small",
            bops="1/50",
            search_epochs=2,
            finetune_epochs=1,
            float_epochs=2,
            batch_size=64,
        )

    plotted = []
    plot_gates = bit_sharing.reporting.plot_gates

    def plot_and_keep(epochs, path):
        plotted.extend(epochs)
        plot_gates(epochs, path)

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(printed):
        patched.setattr(run_lib, "load", lambda *_: part_of_mnist5k)
        patched.setattr(bit_sharing.reporting, "plot_gates", plot_and_keep)
        with interrupted_students():
            call()
        call()
    return folder, printed.getvalue(), plotted


def test_bit_sharing_writes_all_files(finished, check_report):
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


def test_bit_sharing_meets_its_bops_budget(finished, check_report):
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


def test_uniform_baseline_has_4_bits_between_first_and_last_layer(
    finished, check_report
):
    report = check_report(finished[0] / "uniform")
    assert (report["scheme"], report["epochs"]) == ("Uniform", 3)
    assert report["budget"] is None
    bits = [(row["weight_bits"], row["activation_bits"]) for row in report["layers"]]
    assert bits == [(8, 8), (4, 4), (8, 8)]
    assert report["accuracy"]["litert"] > 0.6


def test_an_interrupted_search_resumes_with_its_history(finished):
    _, printed, history = finished
    assert "Continuing the interrupted run" in printed
    epochs = re.findall(r"Epoch (\d/3)", printed)
    assert epochs == ["1/3", "2/3", "3/3", "1/3", "2/3", "3/3"]  # and the baseline's
    # The interrupted epoch ended before its line was printed.
    lines = re.findall(r"bits W/A: 8/8 \d/\d 8/8  filters: [\d ]+  BOPs: 1/\d", printed)
    assert len(lines) == 2
    assert [epoch["searching"] for epoch in history] == [True, True, False]


def test_bit_sharing_prints_a_row_for_itself_and_for_the_baseline(
    finished, check_report
):
    folder, printed, _ = finished
    table = printed[printed.rindex("scheme") :]
    for part in (folder, folder / "uniform"):
        report = check_report(part)
        row = re.search(rf"{report['scheme']}.*", table)[0]
        assert f"{report['accuracy']['litert']:.4f}" in row
        assert f"{report['cost']['bops']:,}" in row
        assert f"{report['size']['tflite_bytes']:,}" in row
