import sys

import keras
import numpy as np
import pytest
from keras import layers
from matplotlib.image import imread

from tfcompress.cost import layer_costs
from tfcompress.reporting import plot_layers


def rows(count):
    """The "layers" of a report."""
    return [
        {
            "name": f"stage{i}_block{i}_conv{i}",
            "weight_bits": 3,
            "container_bits": 4,
            "sparsity": i / count,
        }
        for i in range(count)
    ]


def colours(path):
    pixels = (255 * imread(path)[..., :3]).round().astype(int).reshape(-1, 3)
    return {f"#{r:02X}{g:02X}{b:02X}" for r, g, b in np.unique(pixels, axis=0)}


def test_costs_of_a_model(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, layers.Dense(3, kernel_initializer="zeros")(x))
    plot_layers(layer_costs(model), tmp_path / "layers.png")
    assert {"#0072B2", "#E69F00"} <= colours(tmp_path / "layers.png")


def test_wider_for_more_layers(tmp_path):
    sizes = []
    for count in (5, 60):
        path = tmp_path / f"{count}.png"
        plot_layers(rows(count), path)
        sizes.append(imread(path).shape)
    assert sizes[0][0] == sizes[1][0]
    # Room for a label of 8 points (about 13 pixels) per layer.
    assert sizes[1][1] > 60 * 20


def test_model_without_kernels_is_an_error(tmp_path):
    norm = {"name": "norm", "weight_bits": None}
    with pytest.raises(ValueError, match="layer with a kernel.*Received: 1 layers"):
        plot_layers([norm], tmp_path / "layers.png")


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "tfcompress\[recipes\]"'):
        plot_layers(rows(2), tmp_path / "layers.png")
