"""The recipe: a small run, and budgets that cannot be met."""

import keras
import pytest
from absl import flags

from recipes import size_constrained
from recipes.common import run as run_lib
from recipes.common.size_history import SizeHistory
from tfcompress.litert import check


def test_everything_is_written(tmp_path, run_recipe, few_images, check_report, capsys):
    """Of a chain of two sizes, by folders."""
    run_recipe(
        size_constrained,
        tmp_path,
        size="60 kB,30 kB",
        admm_epochs=1,
        finetune_epochs=1,
        float_epochs=2,
        batch_size=64,
    )
    first = check_report(tmp_path / "chain_1")
    assert 30_000 < first["budget"]["achieved"] <= 60_000
    report = check_report(tmp_path)
    assert report["accuracy"]["float"] == first["accuracy"]["float"]
    assert (report["recipe"], report["scheme"]) == (
        "size_constrained",
        "SizeConstrained",
    )
    budget = report["budget"]
    assert (budget["kind"], budget["requested"]) == ("xz_bytes", 30_000)
    assert budget["achieved"] == report["size"]["tflite_xz_bytes"] <= 30_000
    assert report["agreement"]["top1"] == 1.0
    check(tmp_path / "model.tflite", keras.models.load_model(tmp_path / "model.keras"))
    for folder in (tmp_path, tmp_path / "chain_1"):
        assert (folder / "sizes.png").read_bytes().startswith(b"\x89PNG")
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("bits: ")]
    assert len(lines) == 4 and "of 30,000" in lines[-1]
    assert not (tmp_path / "unfinished_run").exists()


def test_what_is_printed_after_an_epoch(tmp_path):
    history = SizeHistory(tmp_path / "sizes.json")
    now = {
        "bits": {"a": 3, "b": 2},
        "sparsity": {"a": 0.5, "b": 0.994},
        "size": 12345.6,
        "budget": 10000.0,
        "residual": None,
    }
    line = "bits: 3 2  zeros %: 50 99  size: 12,346 of 10,000"
    assert history.line(now) == line
    assert history.line(now | {"residual": 0.25}) == line + "  |W-V|/|W|: 0.250"


@pytest.mark.parametrize(
    "budget", [{"size": "2 kB"}, {"size": "1/1000"}, {"value_bits": "1/1e9"}]
)
def test_impossible_budgets_are_refused_in_one_line(
    tmp_path, run_recipe, few_images, monkeypatch, budget
):
    monkeypatch.setattr(run_lib, "fit", None)  # comes before any training
    with pytest.raises(SystemExit, match="^size_constrained: .*at least") as exit_:
        run_recipe(size_constrained, tmp_path, **budget)
    assert "\n" not in exit_.value.code


def test_one_budget_at_a_time(tmp_path, run_recipe):
    with pytest.raises(flags.IllegalFlagValueError, match="one of --size"):
        run_recipe(size_constrained, tmp_path, size="30 kB", value_bits="1/500")
