"""The code of the README and of short pages, run as that of the guide."""

import importlib.util
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tests.docs.test_guide import ROOT, run_blocks

# Values that the code of the README has from its reader.
READER = """
images = np.random.default_rng(0).normal(size=(64, 28, 28, 1)).astype("float32")
labels, test_images, train_images = np.arange(64) % 10, images, images
layers = [keras.layers.Conv2D(8, 3, strides=2, activation="relu") for _ in range(2)]
layers += [keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
keras.Sequential([keras.Input((28, 28, 1)), *layers]).save("trained.keras")
"""


@pytest.mark.filterwarnings("ignore")
def test_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    text, _ = text.split("## With tensorflow-model-optimization")  # Keras 2
    if importlib.util.find_spec("tflite_micro") is None:
        text, _ = text.split("## On microcontrollers")
    text = re.sub(r"epochs=\d+", "epochs=2", text)
    namespace = {"np": np, "keras": keras}
    exec(READER, namespace)
    run_blocks(ROOT / "README.md", text, namespace)
    path = ROOT / "docs" / "files.md"
    run_blocks(path, path.read_text(), namespace)
    if importlib.util.find_spec("tflite_micro") is not None:
        path = ROOT / "docs" / "microcontrollers.md"
        run_blocks(path, path.read_text(), namespace)


@pytest.mark.filterwarnings("ignore")
def test_code_of_the_pages_on_graphs_and_devices_runs(two_replicas, monkeypatch):
    images = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
    convs = [keras.layers.Conv2D(4, 3, name=f"conv{i}") for i in (1, 2)]
    ends = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *convs, *ends])
    namespace = {"keras": keras, "model": model, "tf": tf, "tfc": tfc}
    path = ROOT / "docs" / "graph.md"
    run_blocks(path, path.read_text(), namespace)
    assert namespace["smaller"].get_layer("conv1").filters == 2

    labels = np.arange(64) % 10
    namespace["optimizer"] = "adam"
    namespace["loss"] = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    train = tf.data.Dataset.from_tensor_slices((images, labels)).batch(32)
    namespace["train"] = train
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda: two_replicas)
    path = ROOT / "docs" / "devices.md"
    text, jax = path.read_text().split("With `KERAS_BACKEND=jax`")
    run_blocks(path, text, namespace)
    assert isinstance(namespace["tiny"], keras.Model)
    assert jax.count("```python") == 1  # make test-jax runs its only line


def test_results_of_the_readme_are_those_of_the_page_on_results():
    rows = {}
    for line in (ROOT / "docs" / "results.md").read_text().splitlines():
        if line.startswith("| "):
            *cells, run = [x.strip() for x in line.strip("| ").split("|")]
            rows[run] = cells
    text = (ROOT / "README.md").read_text()
    text = text[text.index("| top-1 float |") : text.index("## First steps")]
    shown = [line.strip("| ").split("|") for line in text.splitlines()[2:] if line]
    assert len(shown) == 3
    for network, _, *numbers, run in shown:
        cells = rows[run.strip()]
        assert cells[0].startswith(network.strip())
        assert {x.strip() for x in numbers} <= set(cells), run
