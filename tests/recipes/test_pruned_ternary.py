"""Recipe for ternary weights: its flags, its errors, and the files of small runs."""

import functools
import importlib.util
import json
import re

import keras
import pytest
from absl import app, flags

from recipes import pruned_ternary
from recipes.common import data as data_lib
from recipes.common import models
from recipes.common import run as run_lib
from recipes.common.saving import results
from tests.litert.packed_models import make_digit_model
from tfcompress.litert import check
from tfcompress.litert.stored import kernel_tensors

ARTEFACTS = ["float.keras", "layers.png", "model.keras", "model.tflite", "report.json"]


@pytest.fixture
def recipe(tmp_path, run_recipe):
    """Function that runs the recipe with flags, writing to `tmp_path / "out"`."""
    return functools.partial(run_recipe, pruned_ternary, tmp_path / "out")


@pytest.fixture
def check_artefacts(check_report):
    """Function that checks all files of a run, and returns the report."""

    def call(folder, artefacts=ARTEFACTS):
        assert sorted(path.name for path in folder.iterdir()) == artefacts
        return check_report(folder)

    return call


QUICK = {"epochs": 2, "float_epochs": 3, "batch_size": 64}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"float_epochs": -1}, "float_epochs=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": 0}, "above 0"),
        ({"seed": -1}, "seed=-1"),
        ({"precision": "bfloat16"}, "float32|mixed_bfloat16|mixed_float16"),
        ({"input_scaling": "zscore"}, "pixels|unit|signed|imagenet|standardize"),
        ({"first_last": "4bit"}, "8bit|ternary|float"),
        ({"model": "resnet21"}, "lenet5.*resnet56.*or the path"),
        ({"model": "missing.keras"}, "no such file"),
        ({"model": "missing.keras", "input_scaling": "unit"}, "no such file"),
    ],
)
def test_wrong_flags_are_refused(recipe, values, message):
    with pytest.raises(flags.IllegalFlagValueError, match=message.replace("|", ".*")):
        recipe(**values)


def test_a_model_file_needs_its_input_scaling(recipe, tmp_path):
    path = tmp_path / "given.keras"
    models.lenet5((28, 28, 1), 10).save(path)
    with pytest.raises(flags.IllegalFlagValueError, match="--input_scaling.*imagenet"):
        recipe(model=path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 1.5}, "sparsity=1.5"),
        ({"dataset": "cifar1O"}, "catalog"),
        ({"batch_size": 5000}, "at most 1024"),
        ({"input_scaling": "imagenet"}, "3 channels"),
        ({"max_shift": 28}, "--max_shift below 28"),
        ({"output_dir": "/dev/null/out"}, "output_dir.*Not a directory"),
    ],
)
def test_values_that_do_not_fit_are_refused(refuses, monkeypatch, values, message):
    if "dataset" in values:
        monkeypatch.setattr(run_lib, "load", data_lib.load)
    refuses(pruned_ternary, message, **values)


def test_a_model_for_other_images_is_refused(refuses, tmp_path):
    path = tmp_path / "given.h5"
    models.resnet8((32, 32, 3), 10).save(path)
    message = r"mnist5k.*28, 28, 1.*32, 32, 3"
    refuses(pruned_ternary, message, model=path, input_scaling="unit")


def test_a_model_that_is_compressed_already_is_refused_in_one_line(refuses, tmp_path):
    path = tmp_path / "tiny.keras"
    make_digit_model().save(path)
    message = "every layer is left alone, for the reasons above"
    refuses(pruned_ternary, message, model=path, input_scaling="unit")
    assert not list((tmp_path / "out").iterdir())


def test_positional_arguments_are_refused():
    with pytest.raises(app.UsageError, match="only --flags.*cifar10"):
        pruned_ternary.main(["recipe", "cifar10"])


def test_default_model_becomes_ternary_with_the_sparsity_asked_for(
    recipe, check_artefacts, few_images, tmp_path, capsys
):
    recipe(sparsity=0.8, seed=3, **QUICK)
    report = check_artefacts(tmp_path / "out")
    expected = {
        "recipe": "pruned_ternary",
        "scheme": "PrunedTernary",
        "model": "lenet5",
        "dataset": "mnist5k",
        "seed": 3,
        "epochs": 2,
        "keras_backend": "tensorflow",
        "budget": None,
    }
    assert {key: report[key] for key in expected} == expected
    assert report["accuracy"]["float"] > 0.7
    assert report["accuracy"]["compressed"] > 0.6
    assert report["accuracy"]["litert"] == report["accuracy"]["compressed"]
    assert report["agreement"]["samples"] == 200
    assert report["agreement"]["top1"] == 1.0
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert layers["conv1"]["weight_bits"] == layers["classifier"]["weight_bits"] == 8
    for name in ("conv2", "fc1"):
        assert layers[name]["weight_bits"] == layers[name]["container_bits"] == 2
        assert layers[name]["sparsity"] == pytest.approx(0.8, abs=0.01)
    assert report["cost"]["float_params"] == 431_080

    printed = capsys.readouterr().out
    for words in ("left alone", "Input scaling standardize", "val_accuracy", "fc1"):
        assert words in printed

    tiny = keras.models.load_model(tmp_path / "out" / "model.keras")
    check(tmp_path / "out" / "model.tflite", tiny)


@pytest.mark.slow
def test_a_file_for_microcontrollers_is_written_and_reported(
    recipe, few_images, tmp_path, capsys
):
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed")
    recipe(model="small", micro=True, **{**QUICK, "epochs": 1, "float_epochs": 1})
    folder = tmp_path / "out"
    report = json.loads((folder / "micro.json").read_text())
    micro = report["micro"]
    assert micro["flash_bytes"] == (folder / "micro.tflite").stat().st_size
    assert report["agreement"]["top1"] > 0.9
    printed = capsys.readouterr().out
    assert f"Microcontroller: {micro['flash_bytes']:,} bytes of flash" in printed


@pytest.mark.slow
def test_a_recipe_writes_an_int8_file_of_trained_activations(
    recipe, few_images, tmp_path
):
    pytest.importorskip("litert_quantizer")
    values = {**QUICK, "epochs": 1, "float_epochs": 1}
    recipe(model="small", optimize="latency", activation_bits=8, **values)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {x["activation_bits"] for x in report["layers"]} == {8}
    assert report["agreement"]["top1"] >= 0.98
    tensors = kernel_tensors((tmp_path / "out" / "model.tflite").read_bytes())
    assert all(tensor.native for tensor in tensors)


def test_a_missing_quantizer_of_activations_ends_a_recipe_at_once(refuses, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *args: None if name == "litert_quantizer" else find(name, *args),
    )
    message = "tfcompress\\[int8\\]"
    refuses(pruned_ternary, message, optimize="latency", activation_bits=8)


def test_a_missing_runtime_of_microcontrollers_ends_a_recipe_at_once(
    refuses, few_images, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refuses(pruned_ternary, "tfcompress\\[micro\\]", micro=True)


def _interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_run_resumes_where_it_stopped(
    recipe,
    check_artefacts,
    few_images,
    interrupted_students,
    tmp_path,
    capsys,
    monkeypatch,
):
    def printed_epochs():
        return re.findall(r"Epoch (\d/\d)", capsys.readouterr().out)

    with interrupted_students():
        recipe(model="small", **QUICK)
    assert printed_epochs() == ["1/3", "2/3", "3/3", "1/2"]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(results, "predict", _interrupt)
        recipe(model="small", **QUICK)
    assert printed_epochs() == ["2/2"]

    recipe(model="small", **QUICK)
    printed = capsys.readouterr().out
    assert "Continuing the interrupted run" in printed
    assert "Epoch" not in printed
    report = check_artefacts(tmp_path / "out")
    assert report["accuracy"]["compressed"] > 0.7


def test_a_given_model_with_softmax_trains_in_mixed_precision(
    recipe, check_artefacts, few_images, tmp_path
):
    path = tmp_path / "given.keras"
    logits = models.BUILDERS["small"]((28, 28, 1), 10)
    keras.Sequential([logits, keras.layers.Softmax()]).save(path)
    recipe(
        model=path,
        input_scaling="unit",
        first_last="ternary",
        precision="mixed_bfloat16",
        **QUICK,
    )
    report = check_artefacts(tmp_path / "out", ARTEFACTS[1:])
    assert report["model"] == "given"
    assert report["accuracy"]["compressed"] > 0.6
    assert report["agreement"]["top1"] == 1.0
    kernels = [layer for layer in report["layers"] if layer["weight_bits"]]
    assert [layer["container_bits"] for layer in kernels] == [2, 2, 2]


@pytest.mark.slow
def test_default_recipe_loses_at_most_one_point(recipe, check_artefacts, tmp_path):
    recipe()
    report = check_artefacts(tmp_path / "out")
    accuracy = report["accuracy"]
    assert accuracy["float"] - accuracy["litert"] <= 0.01
    assert accuracy["float"] > 0.96
    assert report["agreement"]["top1"] == 1.0
    assert report["agreement"]["samples"] == 1000
