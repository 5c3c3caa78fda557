"""Recipe for decomposition: a small run with both baselines, and refused budgets."""

import keras
import pytest

from recipes import decomposition
from tests.free_sizes import images
from tfcompress.cost import layer_costs, total_cost
from tfcompress.litert import check

# MACs of the small network.
FLOAT_MACS = (5 * 5 * 1 * 8) * 12**2 + (5 * 5 * 8 * 16) * 4**2 + 256 * 10


@pytest.mark.slow
def test_decomposition_and_its_baselines_meet_the_macs_budget(
    tmp_path, run_recipe, few_images, check_report, capsys
):
    run_recipe(
        decomposition,
        tmp_path,
        model="small",
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
def test_an_impossible_macs_budget_is_refused(refuses, macs):
    refuses(decomposition, "^decomposition: .*Received: macs=", macs=macs)


def test_a_model_of_free_sizes_is_measured_at_the_size_of_the_images(
    tmp_path, run_recipe, few_images, check_report, capsys
):
    path = tmp_path / "free.keras"
    images(None, None, channels=1, classes=10).save(path)
    run_recipe(
        decomposition,
        tmp_path / "out",
        model=path,
        macs="1/2",
        epochs=1,
        batch_size=256,
        input_scaling="unit",
    )
    report = check_report(tmp_path / "out")
    known = images(28, 28, channels=1, classes=10)
    assert report["cost"]["float_macs"] == total_cost(layer_costs(known)).macs
    assert report["cost"]["macs"] <= report["cost"]["float_macs"] / 2
    assert "any size; the written one of (28, 28, 1)" in capsys.readouterr().out
