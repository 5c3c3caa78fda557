"""The recipe: a small run with both baselines, and budgets that cannot be met."""

import keras
import pytest

from recipes import decomposition
from recipes.common import run as run_lib
from tfcompress.litert import check

# Of LeNet-5: two convolutions and two dense layers.
FLOAT_MACS = 25 * 20 * 24**2 + 500 * 50 * 8**2 + 800 * 500 + 500 * 10


def test_everything_is_written(tmp_path, run_recipe, few_images, check_report, capsys):
    run_recipe(
        decomposition,
        tmp_path,
        macs="0.4",
        epochs=2,
        float_epochs=2,
        batch_size=64,
        round_to=2,
        baselines=True,
    )
    for folder, scheme in (
        (tmp_path, "Decomposition"),
        (tmp_path / "l1", "L1 pruning"),
        (tmp_path / "narrow", "Narrow"),
    ):
        report = check_report(folder)
        assert report["scheme"] == scheme
        assert report["budget"]["kind"] == "macs"
        assert report["budget"]["requested"] == pytest.approx(0.4 * FLOAT_MACS)
        assert report["cost"]["float_macs"] == FLOAT_MACS
        assert report["cost"]["macs"] == report["budget"]["achieved"]
        assert 0.9 * 0.4 * FLOAT_MACS <= report["cost"]["macs"] <= 0.4 * FLOAT_MACS
        assert report["agreement"]["top1"] == 1.0
        model = keras.models.load_model(folder / "model.keras")
        check(folder / "model.tflite", model)
    printed = capsys.readouterr().out
    table = printed[printed.rindex("scheme ") :]
    assert all(name in table for name in ("Decomposition", "L1 pruning", "Narrow"))
    assert not (tmp_path / "unfinished_run").exists()


@pytest.mark.parametrize("macs", ["0", "1/1000", "2e9", "some"])
def test_impossible_budgets_are_refused_in_one_line(
    tmp_path, run_recipe, few_images, monkeypatch, macs
):
    monkeypatch.setattr(run_lib, "fit", None)  # comes before any training
    with pytest.raises(SystemExit, match="^decomposition: .*Received: macs=") as exit_:
        run_recipe(decomposition, tmp_path, macs=macs)
    assert "\n" not in exit_.value.code
