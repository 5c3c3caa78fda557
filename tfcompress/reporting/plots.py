"""Pictures of what compression did."""

from tfcompress.cost import LayerCost

_INCHES_PER_LAYER = 0.26
# From the palette of Okabe and Ito, told apart by colour-blind readers too.
_BLUE, _ORANGE = "#0072B2", "#E69F00"


def plot_layers(layers, path):
    """Draws the bits and the sparsity of every layer into one PNG file.

    Args:
        layers: what `tfcompress.cost.layer_costs` returns, or the "layers" of a
            report; those without a kernel are left out.
        path: of the file; its folder must exist.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if no layer has a kernel.
        OSError: if the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "`plot_layers` draws with matplotlib, which is not installed. "
            'Install it with: pip install "tfcompress[recipes]"'
        ) from error
    rows = [vars(row) if isinstance(row, LayerCost) else row for row in layers]
    rows = [row for row in rows if row["weight_bits"] is not None]
    if not rows:
        raise ValueError(
            "At least one layer with a kernel is needed for a plot. Received: "
            f"{len(layers)} layers, none with `weight_bits`."
        )
    width = max(6.4, 1.2 + _INCHES_PER_LAYER * len(rows))
    figure = Figure(figsize=(width, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    bits_axes, sparsity_axes = figure.subplots(2, 1, sharex=True)
    _draw_bits(bits_axes, rows)
    _draw_sparsity(sparsity_axes, rows)
    sparsity_axes.set_xticks(range(len(rows)))
    sparsity_axes.set_xticklabels([row["name"] for row in rows], rotation=90, size=8)
    sparsity_axes.set_xlim(-0.7, len(rows) - 0.3)
    sparsity_axes.set_xlabel("layer, in running order")
    figure.align_ylabels()
    figure.savefig(path, format="png", dpi=120)


def _draw_bits(axes, rows):
    positions = range(len(rows))
    bits = [row["weight_bits"] for row in rows]
    containers = [row["container_bits"] for row in rows]
    bars = axes.bar(positions, bits, color=_BLUE, label="weight")
    axes.bar_label(bars, size=8, padding=2)
    if containers != bits:
        axes.bar(
            positions,
            containers,
            facecolor="none",
            edgecolor="black",
            linewidth=0.8,
            label="container in the file",
        )
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    axes.set_ylabel("bits per weight")
    axes.margins(y=0.15)
    axes.locator_params(axis="y", integer=True, steps=[1, 2, 4, 8, 10])
    _style(axes)


def _draw_sparsity(axes, rows):
    percent = [100 * row["sparsity"] for row in rows]
    bars = axes.bar(range(len(rows)), percent, color=_ORANGE)
    axes.bar_label(bars, fmt="%.0f", size=8, padding=2)
    axes.set_ylabel("zero weights (%)")
    axes.set_ylim(0, 110)
    axes.set_yticks(range(0, 101, 20))
    _style(axes)


def _style(axes):
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.88")
    axes.set_axisbelow(True)
