import sys

import keras
import numpy as np
import pytest
from keras import layers
from matplotlib import colormaps
from matplotlib.image import imread

from tfcompress.cost import layer_costs
from tfcompress.reporting import plot_gates, plot_layers, plot_sizes


def rows(count):
    """Returns the "layers" of a report."""
    return [
        {
            "name": f"stage{i}_block{i}_conv{i}",
            "weight_bits": 3,
            "activation_bits": 32,
            "container_bits": 4,
            "channels": 16,
            "sparsity": i / count,
        }
        for i in range(count)
    ]


def epochs(layers, gated):
    """Returns the history of a search of two epochs and one epoch of fine-tuning."""
    names = [f"stage{i}_block{i}_conv{i}" for i in range(layers)]
    return [
        {
            "searching": epoch < 2,
            "bits": dict.fromkeys(names, (2, 4)),
            "kept": dict.fromkeys(names[:gated], (4 * epoch, 8)),
        }
        for epoch in range(3)
    ]


def colors(path):
    pixels = (255 * imread(path)[..., :3]).round().astype(int).reshape(-1, 3)
    return {f"#{r:02X}{g:02X}{b:02X}" for r, g, b in np.unique(pixels, axis=0)}


def test_plot_layers_draws_bits_and_sparsity_of_layer_costs(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, layers.Dense(3, kernel_initializer="zeros")(x))
    plot_layers(layer_costs(model), tmp_path / "layers.png")
    assert {"#0072B2", "#E69F00"} <= colors(tmp_path / "layers.png")


def test_plot_layers_is_wider_for_more_layers(tmp_path):
    sizes = []
    for count in (5, 60):
        path = tmp_path / f"{count}.png"
        plot_layers(rows(count), path)
        sizes.append(imread(path).shape)
    assert sizes[0][0] == sizes[1][0]
    # Room for a label of 8 points (about 13 pixels) per layer.
    assert sizes[1][1] > 60 * 20


def test_plot_layers_draws_activation_bits_and_removed_channels(tmp_path):
    path = tmp_path / "layers.png"
    before = rows(2)
    after = [{**row, "activation_bits": 8} for row in before]
    plot_layers(after, path, before=before)
    assert "#56B4E9" in colors(path)
    assert "#009E73" not in colors(path)
    height = imread(path).shape[0]
    after[1]["channels"] = 12
    plot_layers(after, path, before=before)
    assert "#009E73" in colors(path)
    assert imread(path).shape[0] == height * 3 // 2


def test_plot_gates_has_room_for_all_layers_and_filters(tmp_path):
    shapes = {}
    for layers_, gated in ((1, 0), (60, 0), (60, 30)):
        path = tmp_path / "gates.png"
        plot_gates(epochs(layers_, gated), path)
        shapes[layers_, gated] = imread(path).shape
    # Room for a label of 8 points (about 13 pixels) per layer.
    assert shapes[60, 0][0] > 60 * 20 > shapes[1, 0][0]
    # Filters with gates add a panel.
    assert shapes[60, 30][1] > 1.3 * shapes[60, 0][1]


def test_plot_gates_has_one_color_per_number_of_bits(tmp_path):
    path = tmp_path / "gates.png"
    history = epochs(layers=2, gated=0)
    history[0]["bits"]["stage0_block0_conv0"] = (8, 4)
    plot_gates(history, path)
    shades = colormaps["Blues"](np.linspace(0.15, 0.95, 3), bytes=True)
    assert {"#{:02X}{:02X}{:02X}".format(*shade[:3]) for shade in shades} <= colors(
        path
    )


def test_plot_gates_refuses_an_empty_history(tmp_path):
    with pytest.raises(ValueError, match="At least one epoch"):
        plot_gates([], tmp_path / "gates.png")


def test_plot_sizes_has_room_for_all_layers(tmp_path):
    heights = []
    for count in (1, 60):
        names = [f"stage{i}_conv" for i in range(count)]
        history = [
            {
                "searching": epoch < 2,
                "bits": dict.fromkeys(names, 4),
                "sparsity": dict.fromkeys(names, 0.5),
                "size": 1000 - epoch,
                "budget": 1000,
                "residual": 0.1 if epoch < 2 else None,
            }
            for epoch in range(4)
        ]
        plot_sizes(history, tmp_path / "sizes.png", "bytes")
        heights.append(imread(tmp_path / "sizes.png").shape[0])
    # Room for a label of 8 points (about 13 pixels) per layer.
    assert heights[1] > 60 * 20 > heights[0]


def test_plot_sizes_refuses_an_empty_history(tmp_path):
    with pytest.raises(ValueError, match="At least one epoch"):
        plot_sizes([], tmp_path / "sizes.png", "bytes")


def test_plot_layers_refuses_a_model_without_kernels(tmp_path):
    norm = {"name": "norm", "weight_bits": None, "channels": 4}
    with pytest.raises(ValueError, match="layer with a kernel.*Received: 1 layers"):
        plot_layers([norm], tmp_path / "layers.png")


def test_plots_without_matplotlib_name_the_extra_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "tfcompress\[recipes\]"'):
        plot_layers(rows(2), tmp_path / "layers.png")
