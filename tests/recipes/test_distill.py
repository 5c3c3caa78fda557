"""Distillation in recipes: --distill holds for compressed training and baselines."""

import json

import pytest

from recipes import decomposition, pruned_ternary, size_constrained
from recipes.common import run as run_lib


@pytest.fixture
def trainings(monkeypatch):
    """`(model, names of its metrics)` of each training, in their order."""
    seen, fit = [], run_lib.fit

    def record(model, *args, **kwargs):
        fit(model, *args, **kwargs)
        seen.append((model, set(model.history.history)))

    monkeypatch.setattr(run_lib, "fit", record)
    return seen


@pytest.mark.slow
def test_decomposition_and_its_baselines_are_distilled_alike(
    tmp_path, run_recipe, few_images, trainings, check_report
):
    run_recipe(
        decomposition,
        tmp_path,
        **{"model": "small", "epochs": 1, "float_epochs": 1, "batch_size": 64},
        baselines=True,
        distill=True,
        temperature=3.0,
        distill_weight=0.5,
    )
    (float_model, of_float), *distilled = trainings
    assert len(distilled) == 3 and "distillation_loss" not in of_float
    for model, metrics in distilled:
        settings = model.distillation
        assert (settings.temperature, settings.weight) == (3.0, 0.5)
        assert settings.teacher is float_model
        assert "distillation_loss" in metrics
    for folder in (tmp_path, tmp_path / "l1", tmp_path / "narrow"):
        check_report(folder)


@pytest.mark.slow
def test_all_models_of_a_chain_learn_from_the_float_model(
    tmp_path, run_recipe, few_images, trainings
):
    run_recipe(
        size_constrained,
        tmp_path,
        **{"model": "small", "float_epochs": 1, "batch_size": 64},
        **{"admm_epochs": 1, "finetune_epochs": 1, "value_bits": "1/4,1/8"},
        distill=True,
    )
    (float_model, _), *students = trainings
    assert len(students) == 2
    assert all(x.distillation.teacher is float_model for x, _ in students)


def test_run_settings_have_the_distillation_so_that_no_other_run_is_resumed(
    tmp_path, run_recipe, few_images, interrupted_students
):
    with interrupted_students():
        run_recipe(
            pruned_ternary,
            tmp_path,
            **{"model": "small", "epochs": 2, "float_epochs": 1, "distill": True},
        )
    (settings,) = (tmp_path / "unfinished_run").glob("*.json")
    recorded = json.loads(settings.read_text())
    expected = {"distill": True, "temperature": 4.0, "distill_weight": 0.9}
    assert expected.items() <= recorded.items()


@pytest.mark.parametrize("flag", ["temperature", "distill_weight"])
def test_distillation_out_of_range_is_refused(refuses, flag):
    name = flag.removeprefix("distill_")
    message = f"^pruned_ternary: .*Received: {name}=0"
    refuses(pruned_ternary, message, distill=True, **{flag: 0})
