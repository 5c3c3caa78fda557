"""Results of a training: those of another backend, and of held-out images."""

import json

import keras
import numpy as np
import pytest

from recipes import decomposition, export, pruned_ternary
from recipes.common import data
from recipes.common.saving import results
from tfcompress.litert import check

SMALL = {"model": "small", "float_epochs": 1, "epochs": 1, "batch_size": 64}


@pytest.mark.slow
def test_model_of_another_backend_is_exported_and_reported_later(
    tmp_path, run_recipe, few_images, check_report, monkeypatch, capsys
):
    with monkeypatch.context() as patched:
        patched.setattr(results, "_can_export", lambda: False)
        run_recipe(decomposition, tmp_path, **SMALL, baselines=True)
    folders = [tmp_path, tmp_path / "l1", tmp_path / "narrow"]
    assert not any((folder / "report.json").exists() for folder in folders)
    facts = json.loads((tmp_path / results.UNEXPORTED).read_text())
    (tmp_path / results.UNEXPORTED).write_text(
        json.dumps({**facts, "keras_backend": "jax", "machine": "NVIDIA H200"})
    )
    assert "python -m recipes.export" in capsys.readouterr().out

    run_recipe(export, tmp_path, model="small")
    reports = [check_report(folder) for folder in folders]
    names = [report["scheme"] for report in reports]
    assert names == ["Decomposition", "L1 pruning", "Narrow"]
    assert reports[0]["keras_backend"] == "jax"
    assert reports[0]["machine"] == "NVIDIA H200"
    assert reports[0]["accuracy"]["float"] == facts["float_accuracy"]
    assert reports[0]["budget"]["kind"] == "macs"
    assert "CPU cores" in reports[1]["machine"]
    for folder in folders:
        model = keras.models.load_model(folder / "model.keras")
        check(folder / "model.tflite", model)
        assert not (folder / results.UNEXPORTED).exists()


def test_export_refuses_a_folder_without_a_model_that_waits(tmp_path, run_recipe):
    with pytest.raises(SystemExit, match="^export: .*with unexported.json"):
        run_recipe(export, tmp_path, model="small")


def test_held_out_images_are_measured_and_the_test_images_left_alone(
    tmp_path, run_recipe, few_images, monkeypatch
):
    measured = []
    save_results = results.save_results
    monkeypatch.setattr(
        "recipes.common.run.save_results",
        lambda tiny, facts, used, *rest: (
            measured.append(used) or save_results(tiny, facts, used, *rest)
        ),
    )
    run_recipe(pruned_ternary, tmp_path, **SMALL, holdout=100)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dataset"] == "mnist5k (99 training images held out)"
    assert len(measured[0].labels) == 99
    assert report["agreement"]["samples"] == 99


def test_hold_out_takes_training_images_of_all_classes(mnist5k):
    held = data.hold_out(mnist5k, 500)
    assert held.test_images.shape == (500, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(held.test_labels), 50)
    together = np.concatenate([held.train_images, held.test_images])
    np.testing.assert_array_equal(
        np.sort(together.reshape(len(together), -1).sum(1)),
        np.sort(mnist5k.train_images.reshape(len(together), -1).sum(1)),
    )
    with pytest.raises(ValueError, match="--holdout below 4000.*4000"):
        data.hold_out(mnist5k, 4000)
