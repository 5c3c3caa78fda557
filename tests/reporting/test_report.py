import copy
import json
import math
import os

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests.free_sizes import free_model
from tfcompress.reporting import build_report, validate_report, write_report


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Returns a report of a real model, and the folder of its files."""
    folder = tmp_path_factory.mktemp("report")
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, use_bias=False, name="first")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(4, 3, activation="relu", name="middle")(x)
    outputs = layers.Dense(3, name="last")(layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    tiny = tfc.finalize(tfc.compress(model, tfc.PrunedTernary()))
    tiny.save(folder / "tiny.keras")
    samples = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype("float32")
    exported = tfc.export(tiny, folder / "tiny.tflite", verify=samples)
    report = build_report(
        recipe="pruned_ternary",
        scheme="PrunedTernary",
        model="lenet5",
        dataset="mnist5k",
        seed=0,
        epochs=1,
        machine="2 CPU cores",
        wall_seconds=1.5,
        accuracy={"float": 1.0, "compressed": np.float32(0.5), "litert": 0.5},
        export_report=exported,
        float_model=model,
        tiny=tiny,
        keras_path=folder / "tiny.keras",
        budget={"kind": "bytes", "requested": 10_000},
    )
    return report, folder


@pytest.fixture
def report(built):
    return copy.deepcopy(built[0])


def test_write_report_writes_json_that_reads_back(report, tmp_path):
    path = tmp_path / "report.json"
    write_report(report, path)
    assert json.loads(path.read_text()) == report
    assert os.listdir(tmp_path) == ["report.json"]


def test_report_keys_and_their_order(report):
    assert list(report) == [
        "recipe",
        "scheme",
        "model",
        "dataset",
        "seed",
        "epochs",
        "keras_backend",
        "machine",
        "wall_seconds",
        "accuracy",
        "size",
        "cost",
        "budget",
        "agreement",
        "latency_ms",
        "memory",
        "layers",
    ]
    assert list(report["size"]) == [
        "float_tflite_bytes",
        "tflite_bytes",
        "tflite_xz_bytes",
        "keras_bytes",
        "entropy_bytes",
        "value_bits",
    ]
    assert set(report["agreement"]) == {"samples", "top1", "max_abs_diff"}
    assert list(report["layers"][0]) == [
        "name",
        "type",
        "weight_bits",
        "activation_bits",
        "container_bits",
        "sparsity",
        "rank",
        "channels",
        "macs",
        "bytes",
    ]


def test_report_sizes_are_those_of_the_files(built):
    report, folder = built
    assert report["size"]["keras_bytes"] == os.path.getsize(folder / "tiny.keras")
    assert report["size"]["tflite_bytes"] == os.path.getsize(folder / "tiny.tflite")


def test_report_costs_are_those_of_both_models(report):
    kernels = [3 * 3 * 1 * 4, 3 * 3 * 4 * 4, 4 * 4 * 4 * 3]
    macs = [kernels[0] * 6 * 6, kernels[1] * 4 * 4, kernels[2]]
    assert report["cost"] == {
        # The BatchNormalization is folded into a bias of the first convolution.
        "params": sum(kernels) + 4 + 4 + 3,
        "macs": sum(macs),
        "bops": (8 * macs[0] + 2 * macs[1] + 8 * macs[2]) * 32,
        "float_params": sum(kernels) + 4 * 4 + 4 + 3,
        "float_macs": sum(macs),
        "float_bops": sum(macs) * 32 * 32,
    }
    assert [layer["weight_bits"] for layer in report["layers"]] == [8, 2, 8]


def test_report_budget_contains_the_achieved_value(report):
    size = report["size"]["tflite_bytes"]
    expected = {"kind": "bytes", "requested": 10_000, "achieved": size}
    assert report["budget"] == expected


def test_report_without_a_budget_and_with_latency_is_valid(report):
    report["budget"] = None
    report["latency_ms"] = {"float": 1.0, "compressed": 0.5, "threads": 1, "runs": 50}
    validate_report(report)


@pytest.mark.parametrize(
    "place, value, message",
    [
        (("wall_seconds",), math.nan, r"'wall_seconds'\] must be a finite.*nan"),
        (("agreement", "max_abs_diff"), np.float32("inf"), "'max_abs_diff'.*inf"),
        (("accuracy", "float"), 91.7, r"'float'\] must be a fraction.*91.7"),
        (("accuracy",), {"float": 0.9}, r"'accuracy'\] must .* keys .*'litert'"),
        (("size", "tflite_bytes"), 10.5, r"'tflite_bytes'\] must be an integer"),
        (("size", "gzip_bytes"), 10, "must be a dictionary with the keys.*gzip"),
        (("seed",), True, r"'seed'\] must be an integer.*True"),
        (("dataset",), "", r"'dataset'\] must be a string"),
        (("agreement",), None, r"'agreement'\] must be a dictionary.*None"),
        (("latency_ms",), {"float": 1.0}, r"'latency_ms'\] must be a dictionary"),
        (("layers",), "none", r"'layers'\] must be a list"),
        (("layers", 1, "sparsity"), -0.1, r"'layers'\]\[1\]\['sparsity'\]"),
    ],
)
def test_write_report_refuses_a_wrong_value_and_writes_nothing(
    report, tmp_path, place, value, message
):
    target = report
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    with pytest.raises(ValueError, match=message):
        write_report(report, tmp_path / "report.json")
    assert os.listdir(tmp_path) == []


def test_write_report_keeps_the_old_report_if_it_cannot_replace_it(
    report, tmp_path, monkeypatch
):
    path = tmp_path / "report.json"
    path.write_text("old")

    def full_disk(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_report(report, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_write_report_refuses_a_missing_folder(report, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(report, tmp_path / "nowhere" / "report.json")


def test_report_of_a_model_of_free_sizes_has_no_operations(built):
    report, folder = built
    model = free_model("images")
    tiny = tfc.finalize(tfc.compress(model, tfc.PrunedTernary()))
    free = build_report(
        **{key: report[key] for key in ("recipe", "scheme", "model", "dataset")},
        **{key: report[key] for key in ("seed", "epochs", "wall_seconds", "accuracy")},
        machine=report["machine"],
        export_report=report,
        float_model=model,
        tiny=tiny,
        keras_path=folder / "tiny.keras",
    )
    validate_report(free)
    costs = {key: value for key, value in free["cost"].items() if "params" not in key}
    assert set(costs.values()) == {None}
    macs = {layer["name"]: layer["macs"] for layer in free["layers"]}
    assert (macs["conv0"], macs["head"]) == (None, 64)
