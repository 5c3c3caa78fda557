"""Fixtures of the recipes' tests: few images, a small network, checks of a run."""

import contextlib
import dataclasses
import json

import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from keras import layers

from recipes.common import data, models
from recipes.common import run as run_lib
from recipes.common.saving.backup import Backup


@pytest.fixture(scope="session")
def mnist5k():
    """`ImageData` of the 5 000 MNIST images, read once: it takes seconds."""
    return data.load(data.MNIST5K)


@pytest.fixture(scope="session")
def part_of_mnist5k(mnist5k):
    """`ImageData` of 1024 images to train with and 200 to test."""
    return dataclasses.replace(
        mnist5k,
        train_images=mnist5k.train_images[:1024],
        train_labels=mnist5k.train_labels[:1024],
        test_images=mnist5k.test_images[:200],
        test_labels=mnist5k.test_labels[:200],
    )


@pytest.fixture(scope="session")
def photographs():
    """`ImageData` of 64 images of noise, of which no two crops are equal."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    labels = np.arange(64) % 10
    return data.ImageData("cifar10", 10, pixels, labels, pixels[:8], labels[:8])


@pytest.fixture
def few_images(monkeypatch, part_of_mnist5k):
    """Makes recipes load a part of mnist5k, for each name of a data set."""
    monkeypatch.setattr(run_lib, "load", lambda *_: part_of_mnist5k)


def small_network(input_shape, num_classes):
    """Three layers with kernels, one of them normalized: traced in seconds."""
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(8, 5, 2, name="conv1")(inputs)
    x = layers.ReLU(name="relu1")(
        layers.BatchNormalization(momentum=0.9, name="bn1")(x)
    )
    x = layers.Conv2D(16, 5, 2, activation="relu", name="conv2")(x)
    x = layers.Flatten(name="flatten")(x)
    outputs = layers.Dense(num_classes, name="classifier")(x)
    return keras.Model(inputs, outputs, name="small")


@pytest.fixture(autouse=True, scope="session")
def _small_is_built_in():
    """Makes `small_network` the recipes' --model=small."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(models.BUILDERS, "small", small_network)
        yield


@pytest.fixture(scope="session")
def run_recipe():
    """Function that runs the `main` of a recipe with flags, writing to a folder."""

    def call(recipe, folder, **values):
        values = {"output_dir": folder, **values}
        with flagsaver.flagsaver():
            flags.FLAGS(
                ["recipe", *[f"--{key}={value}" for key, value in values.items()]]
            )
            recipe.main(["recipe"])

    return call


@pytest.fixture
def refuses(run_recipe, few_images, monkeypatch, tmp_path):
    """Function that checks that a recipe ends in one line, before any training."""
    monkeypatch.setattr(run_lib, "fit", None)

    def call(recipe, message, **values):
        with pytest.raises(SystemExit, match=message) as raised:
            run_recipe(recipe, tmp_path / "out", **values)
        assert "\n" not in raised.value.code

    return call


@pytest.fixture(scope="session")
def interrupted_students():
    """Context in which the training of a student is interrupted after an epoch."""
    on_epoch_end = Backup.on_epoch_end

    def interrupt(self, epoch, logs=None):
        on_epoch_end(self, epoch, logs)
        if self.folder.name == "student":
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def context():
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Backup, "on_epoch_end", interrupt)
            with pytest.raises(KeyboardInterrupt):
                yield

    return context


@pytest.fixture(scope="session")
def check_report():
    """Function that compares `report.json` with its files, and returns it."""

    def call(folder):
        assert (folder / "layers.png").read_bytes().startswith(b"\x89PNG")
        report = json.loads((folder / "report.json").read_text())
        assert set(report) == {
            *("recipe", "scheme", "model", "dataset", "seed", "epochs"),
            *("keras_backend", "machine", "wall_seconds", "accuracy", "size", "cost"),
            *("budget", "agreement", "latency_ms", "memory", "layers"),
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
