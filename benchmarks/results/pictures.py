"""Pictures of `docs/results.md`: accuracy against bytes, BOPs and MACs."""

import hashlib
import json
import pathlib

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.results.rows import longest, rows_of
from benchmarks.results.run import NETWORKS, Places

# Networks that have a panel.
_PANELS = ("resnet8", "resnet20")
# Color (of Okabe and Ito) and marker of each method, in order of the legend.
_STYLES = {
    "size-constrained": ("#0072B2", "o-"),
    "pruned ternary": ("#D55E00", "s-"),
    "bit sharing": ("#0072B2", "D-"),
    "bit sharing of 2, 3, 4, 8 bits, first and last layer too": ("#D55E00", "s-"),
    "decomposition": ("#0072B2", "o-"),
    "plain TWN": ("#E69F00", "s"),
    "magnitude pruning, 2 bits": ("#F0E442", "<-"),
    "uniform weights": ("#009E73", "^-"),
    "uniform bits": ("#009E73", "v-"),
    "L1 pruning": ("#009E73", "^-"),
    "narrow, from scratch": ("#CC79A7", "v-"),
    "chained": ("#000000", "*"),
    "stock int8": ("#CC79A7", "P"),
    "stock int4": ("#56B4E9", "X"),
}
# Points that lose more than this, in percent, are left out of a picture.
_LARGEST_LOSS = 12
# Key of the text in a PNG that says from which points it was drawn.
_SOURCE = "Source"


def _points(rows, cost):
    """{network: {method: [[cost, accuracy, deviation], ...]}} of the longest runs."""
    points = {key: {} for key in _PANELS}
    for row in longest(rows):
        if row.run.network not in points:
            continue
        method = "chained" if "then" in row.method else row.method
        point = [
            row.mean(cost),
            100 * row.mean(lambda report: report["accuracy"]["litert"]),
            100 * row.spread(lambda report: report["accuracy"]["litert"]),
        ]
        points[row.run.network].setdefault(method, []).append(point)
    return points


def _bytes(places):
    tables = ("size", "ternary", "bits")
    rows = [row for table in tables for row in rows_of(table, places)]
    points = _points(rows, lambda report: report["size"]["tflite_xz_bytes"] / 1000)
    for row in rows_of("files", places):
        for file in row.reports[0]["rows"]:
            if row.run.network in points and file["file"].startswith("stock"):
                point = [file["xz_bytes"] / 1000, 100 * file["accuracy"], 0.0]
                points[row.run.network].setdefault(file["file"], [point])
    return points


def _bops(places):
    return _points(
        rows_of("bits", places),
        lambda report: report["cost"]["float_bops"] / report["cost"]["bops"],
    )


def _macs(places):
    return _points(
        rows_of("macs", places),
        lambda report: report["cost"]["macs"] / report["cost"]["float_macs"],
    )


# Points of each picture, and label and scale of its horizontal axis.
PICTURES = {
    "accuracy_bytes.png": (_bytes, "kB of the .tflite after xz", "log"),
    "accuracy_bops.png": (_bops, "BOPs of float / BOPs", "log"),
    "accuracy_macs.png": (_macs, "MACs, of float", "linear"),
}


def update_picture(name: str, places: Places, path: pathlib.Path, check: bool) -> bool:
    """Draws a picture unless it is drawn from the same points already.

    Args:
        name: str. Key of `PICTURES`.
        places: `Places`; only the reports are read.
        path: `pathlib.Path` of the PNG.
        check: bool. Whether to compare only.

    Returns:
        Whether it had to be drawn.
    """
    make_points, *axis = PICTURES[name]
    points = make_points(places)
    source = hashlib.sha256(json.dumps([points, axis]).encode()).hexdigest()
    if path.exists() and source == _source_of(path):
        return False
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        _draw(points, _float_accuracies(places), axis, path, source)
    return True


def _source_of(path):
    with Image.open(path) as image:
        return image.text.get(_SOURCE)


def _float_accuracies(places):
    """{network: accuracy of its float model, in percent}."""
    return {
        row.run.network: 100 * row.reports[0]["accuracy"]["float"]
        for table in ("ternary", "bits", "size", "macs")
        for row in rows_of(table, places)
    }


def _draw(points, float_accuracies, axis, path, source):
    label, scale = axis
    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, network in zip(figure.subplots(1, 2), _PANELS, strict=True):
        methods, whole = points[network], float_accuracies.get(network, 100)
        axes.axhline(whole, color="0.5", linestyle="--", label="float")
        for name, (color, style) in _STYLES.items():
            if name in methods:
                drawn = [x for x in methods[name] if x[1] > whole - _LARGEST_LOSS]
                x, y, spread = zip(*sorted(drawn), strict=True) if drawn else ([],) * 3
                axes.errorbar(x, y, spread, fmt=style, color=color, label=name)
        axes.set_xscale(scale)
        axes.set_xlabel(label)
        axes.set_ylabel("top-1 in LiteRT (%)")
        axes.set_title(NETWORKS[network].title, size=10)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="x", which="minor", labelsize=7)
        axes.grid(which="both", color="0.88")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, metadata={_SOURCE: source})
