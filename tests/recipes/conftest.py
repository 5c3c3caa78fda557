"""Shared by the tests of the recipes."""

import dataclasses
import json

import pytest
from absl import flags
from absl.testing import flagsaver

from recipes.common import data
from recipes.common import run as run_lib


@pytest.fixture(scope="session")
def mnist5k():
    """`ImageData` of the 5 000 MNIST images, read once: it takes seconds."""
    return data.load(data.MNIST5K)


@pytest.fixture(scope="session")
def part_of_mnist5k(mnist5k):
    """1024 of its images to train with, 200 to test, to be quick."""
    return dataclasses.replace(
        mnist5k,
        train_images=mnist5k.train_images[:1024],
        train_labels=mnist5k.train_labels[:1024],
        test_images=mnist5k.test_images[:200],
        test_labels=mnist5k.test_labels[:200],
    )


@pytest.fixture
def few_images(monkeypatch, part_of_mnist5k):
    """Recipes get a part of mnist5k, whatever they ask for."""
    monkeypatch.setattr(run_lib, "load", lambda *_: part_of_mnist5k)


@pytest.fixture(scope="session")
def run_recipe():
    """Function that runs a recipe's `main` with flags, writing to a folder."""

    def call(recipe, folder, **values):
        values = {"output_dir": folder, **values}
        with flagsaver.flagsaver():
            flags.FLAGS(
                ["recipe", *[f"--{key}={value}" for key, value in values.items()]]
            )
            recipe.main(["recipe"])

    return call


@pytest.fixture(scope="session")
def check_report():
    """Function that compares `report.json` with its files, and returns it."""

    def call(folder):
        assert (folder / "layers.png").read_bytes().startswith(b"\x89PNG")
        report = json.loads((folder / "report.json").read_text())
        assert set(report) == {
            *("recipe", "scheme", "model", "dataset", "seed", "epochs"),
            *("keras_backend", "wall_seconds", "accuracy", "size", "cost", "budget"),
            *("agreement", "latency_ms", "memory", "layers"),
        }
        assert set(report["accuracy"]) == {"float", "compressed", "litert"}
        assert set(report["size"]) == {
            *("float_tflite_bytes", "tflite_bytes", "tflite_xz_bytes", "keras_bytes"),
            *("entropy_bytes", "value_bits"),
        }
        assert set(report["cost"]) == {
            *("params", "macs", "bops", "float_params", "float_macs", "float_bops"),
        }
        assert set(report["agreement"]) == {"samples", "top1", "max_abs_diff"}
        assert set(report["latency_ms"]) == {"float", "compressed", "threads", "runs"}
        assert set(report["memory"]) == {"float_arena_bytes", "arena_bytes"}
        for layer in report["layers"]:
            assert set(layer) == {
                *("name", "type", "weight_bits", "activation_bits", "container_bits"),
                *("sparsity", "rank", "channels", "macs", "bytes"),
            }
        size = report["size"]
        assert size["tflite_bytes"] == (folder / "model.tflite").stat().st_size
        assert size["keras_bytes"] == (folder / "model.keras").stat().st_size
        return report

    return call
