"""Plots of a compressed model and of its training."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfcompress.cost import LayerCost
from tfcompress.cost.arithmetic import FLOAT_BITS

_INCHES_PER_LAYER = 0.26
# From the palette of Okabe and Ito, which color-blind readers can distinguish.
_BLUE, _ORANGE, _GREEN, _SKY = "#0072B2", "#E69F00", "#009E73", "#56B4E9"


def plot_layers(
    layers: Sequence[LayerCost | dict[str, Any]],
    path: str | os.PathLike,
    before: Sequence[LayerCost | dict[str, Any]] | None = None,
) -> None:
    """Draws bits, sparsity and kept channels of each layer into one PNG file.

    Bits of activations are those of a layer's input, drawn if any layer quantizes it.
    Channels are drawn if any were removed.

    Args:
        layers: list of `tfcompress.cost.LayerCost`, or the "layers" of a report.
            Layers without a kernel are left out.
        path: path of the file; its folder must exist.
        before: `layers` of the model before compression, or None if no channels were
            removed.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if no layer has a kernel.
        OSError: if the file cannot be written.
    """
    rows = [row for row in _as_dicts(layers) if row["weight_bits"] is not None]
    if not rows:
        raise ValueError(
            "At least one layer with a kernel is needed for a plot. Received: "
            f"{len(layers)} layers, none with `weight_bits`."
        )
    unpruned = {row["name"]: row["channels"] for row in _as_dicts(before or ())}
    channels = [unpruned.get(row["name"], row["channels"]) for row in rows]
    panels = [_draw_bits, _draw_sparsity]
    if channels != [row["channels"] for row in rows]:
        panels.append(lambda axes, rows: _draw_channels(axes, rows, channels))

    width = max(6.4, 1.2 + _INCHES_PER_LAYER * len(rows))
    figure = _figure(width, 3.2 * len(panels))
    all_axes = figure.subplots(len(panels), 1, sharex=True)
    for draw, axes in zip(panels, all_axes, strict=True):
        draw(axes, rows)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.88")
        axes.set_axisbelow(True)
    all_axes[-1].set_xticks(range(len(rows)))
    all_axes[-1].set_xticklabels([row["name"] for row in rows], rotation=90, size=8)
    all_axes[-1].set_xlim(-0.7, len(rows) - 0.3)
    all_axes[-1].set_xlabel("layer, in running order")
    figure.align_ylabels()
    figure.savefig(path, format="png", dpi=120)


def plot_gates(epochs: Sequence[dict[str, Any]], path: str | os.PathLike) -> None:
    """Draws every layer's bits and kept filters over the epochs into one PNG file.

    Weight bits, activation bits and, where filters have gates, kept filters have one
    heat map each. A line marks the end of the search.

    Args:
        epochs: list of dictionaries, one per epoch, of the same layers.
            "searching": bool. Whether the search had not ended.
            "bits": `{layer name: (weight bits, activation bits)}`.
            "kept": `{layer name: (kept filters, filters)}` of layers with gates.
        path: path of the file; its folder must exist.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there is no epoch.
        OSError: if the file cannot be written.
    """
    if not epochs:
        raise ValueError("At least one epoch is needed for a plot. Received: none.")
    names = list(epochs[0]["bits"])
    bits = np.array([[epoch["bits"][name] for name in names] for epoch in epochs])
    all_kept = epochs[0]["kept"]
    panels = 3 if all_kept else 2
    figure = _figure(1.5 + 3.4 * panels, max(3.6, 1.4 + _INCHES_PER_LAYER * len(names)))
    all_axes = figure.subplots(1, panels, sharey=True)
    _draw_bit_history(all_axes[:2], bits)
    if all_kept:
        kept = [[epoch["kept"].get(name) for name in names] for epoch in epochs]
        _draw_kept_history(all_axes[2], kept)
    _mark_search(all_axes, epochs)
    all_axes[0].set_yticks(range(len(names)))
    all_axes[0].set_yticklabels(names, size=8)
    figure.savefig(path, format="png", dpi=120)


def plot_sizes(
    epochs: Sequence[dict[str, Any]], path: str | os.PathLike, unit: str
) -> None:
    """Draws a size-constrained training over the epochs into one PNG file.

    Each layer's bits and sparsity are heat maps. Size and budget, and the residual
    between float and quantized weights during the search, are curves.

    Args:
        epochs: list of dictionaries, one per epoch, of the same layers.
            "searching": bool. Whether the search had not ended.
            "bits": `{layer name: bits}`.
            "sparsity": `{layer name: fraction of zeros}`.
            "size", "budget": numbers in `unit`.
            "residual": ||W - V|| / ||W|| of ADMM, or None.
        path: path of the file; its folder must exist.
        unit: str. Unit of size and budget.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there is no epoch.
        OSError: if the file cannot be written.
    """
    if not epochs:
        raise ValueError("At least one epoch is needed for a plot. Received: none.")
    names = list(epochs[0]["bits"])
    height = max(3.6, 1.4 + _INCHES_PER_LAYER * len(names))
    figure = _figure(15.0, height)
    all_axes = figure.subplots(1, 4)
    for axes, title, values, style in (
        (all_axes[0], "bits of non-zero weights", "bits", {"vmin": 0, "vmax": 8}),
        (all_axes[1], "zero weights (%)", "sparsity", {"vmin": 0, "vmax": 100}),
    ):
        scale = 100 if values == "sparsity" else 1
        rows = [[scale * epoch[values][name] for name in names] for epoch in epochs]
        image = _draw_history(
            axes, title, np.array(rows), {"cmap": _colormap()} | style
        )
        figure.colorbar(image, ax=axes)
        axes.set_yticks(range(len(names)) if values == "bits" else [])
    all_axes[0].set_yticklabels(names, size=8)
    x = np.arange(1, len(epochs) + 1)
    all_axes[2].plot(x, [e["size"] for e in epochs], "o-", color=_BLUE)
    all_axes[2].axhline(epochs[-1]["budget"], color=_ORANGE, linestyle="--")
    all_axes[2].set_title(f"size ({unit}); dashed: the budget", size=10)
    residuals = [np.nan if e["residual"] is None else e["residual"] for e in epochs]
    all_axes[3].plot(x, residuals, "o-", color=_GREEN)
    all_axes[3].set_title("||W - V|| / ||W||", size=10)
    _mark_search(all_axes, epochs)
    figure.savefig(path, format="png", dpi=120)


def _as_dicts(layers):
    return [vars(row) if isinstance(row, LayerCost) else row for row in layers]


def _figure(width, height):
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Plots are drawn with matplotlib, which is not installed. "
            'Install it with: pip install "tfcompress[recipes]"'
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_bits(axes, rows):
    positions = np.arange(len(rows))
    bits = [row["weight_bits"] for row in rows]
    containers = [row["container_bits"] for row in rows]
    activations = [row["activation_bits"] for row in rows]
    quantized = any(bits != FLOAT_BITS for bits in activations)
    width = 0.4 if quantized else 0.8
    weights_at = positions - 0.2 if quantized else positions
    bars = axes.bar(weights_at, bits, width, color=_BLUE, label="weight")
    axes.bar_label(bars, size=8, padding=2)
    if quantized:
        bars = axes.bar(
            positions + 0.2, activations, width, color=_SKY, label="activation"
        )
        axes.bar_label(bars, size=8, padding=2)
    if containers != bits:
        axes.bar(
            weights_at,
            containers,
            width,
            facecolor="none",
            edgecolor="black",
            linewidth=0.8,
            label="container in the file",
        )
    if quantized or containers != bits:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    axes.set_ylabel("bits" if quantized else "bits per weight")
    axes.margins(y=0.15)
    axes.locator_params(axis="y", integer=True, steps=[1, 2, 4, 8, 10])


def _draw_sparsity(axes, rows):
    percent = [100 * row["sparsity"] for row in rows]
    bars = axes.bar(range(len(rows)), percent, color=_ORANGE)
    axes.bar_label(bars, fmt="%.0f", size=8, padding=2)
    axes.set_ylabel("zero weights (%)")
    axes.set_ylim(0, 110)
    axes.set_yticks(range(0, 101, 20))


def _draw_channels(axes, rows, before):
    kept = [row["channels"] for row in rows]
    shares = [100 * now / total for now, total in zip(kept, before, strict=True)]
    bars = axes.bar(range(len(rows)), shares, color=_GREEN)
    axes.bar_label(bars, labels=map(str, kept), size=8, padding=2)
    axes.set_ylabel("kept channels (%, number)")
    axes.set_ylim(0, 110)
    axes.set_yticks(range(0, 101, 20))


def _draw_bit_history(all_axes, bits):
    """Draws `bits`, an int array (epochs, layers, 2)."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    # One shade per number of bits that occurs.
    found, shades = np.unique(bits, return_inverse=True)
    colors = _colormap()(np.linspace(0.15, 0.95, len(found)))
    style = {
        "cmap": ListedColormap(colors),
        "norm": BoundaryNorm(np.arange(len(found) + 1) - 0.5, len(found)),
    }
    shades = shades.reshape(bits.shape)
    for axes, title, values in zip(
        all_axes, ("weight bits", "activation bits"), np.moveaxis(shades, 2, 0),
        strict=True,
    ):  # fmt: skip
        image = _draw_history(axes, title, values, style)
    colorbar = axes.figure.colorbar(image, ax=axes, ticks=range(len(found)))
    colorbar.ax.set_yticklabels(map(str, found))


def _draw_kept_history(axes, kept):
    """Draws `kept`, a list (epochs, layers) of (kept filters, filters) or None."""
    percent = [
        [np.nan if pair is None else 100 * pair[0] / pair[1] for pair in row]
        for row in kept
    ]
    style = {"cmap": _colormap("Greens"), "vmin": 0, "vmax": 100}
    image = _draw_history(axes, "kept filters (%)", np.array(percent), style)
    axes.set_facecolor("0.92")  # the color of layers without gates
    axes.figure.colorbar(image, ax=axes)


def _mark_search(all_axes, epochs):
    """Labels axes over epochs, with a line at the end of the search."""
    searched = sum(epoch["searching"] for epoch in epochs)
    for axes in all_axes:
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True)
        if 0 < searched < len(epochs):
            axes.axvline(searched + 0.5, color="black", linestyle="--", linewidth=1.2)


def _draw_history(axes, title, values, style):
    epochs, layers = values.shape
    axes.set_title(title, size=10)
    return axes.imshow(
        values.T,
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, epochs + 0.5, layers - 0.5, -0.5),
        **style,
    )


def _colormap(name="Blues"):
    from matplotlib import colormaps

    return colormaps[name]
