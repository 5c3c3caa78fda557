"""Plot of accuracy against bytes.

`python -m benchmarks.tradeoff --output=FILE.png REPORT.json...` takes reports of
recipes and of `benchmarks.artifacts`, all of one model. It draws the accuracy in LiteRT
over the bytes of the `.tflite` after xz. Of the artifacts it draws only the stock
full-integer file, as uniform 8 bits.
"""

import argparse
import json
import pathlib

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Label, colour (of Okabe and Ito) and marker of each scheme, in order of the legend.
STYLES = {
    "SizeConstrained": ("size-constrained (zeros and bits)", "#0072B2", "o-"),
    "PrunedTernary": ("pruned ternary", "#D55E00", "s"),
    "Uniform": ("uniform 4 bits, inputs too", "#009E73", "^"),
    "stock int8": ("uniform 8 bits, stock int8", "#CC79A7", "v"),
}


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tradeoff", description="Accuracy against bytes."
    )
    parser.add_argument(
        "reports", nargs="+", help="report.json or artifacts.json files"
    )
    parser.add_argument("--output", required=True, help="the PNG to write")
    options = parser.parse_args()
    found = [json.loads(pathlib.Path(file).read_text()) for file in options.reports]
    models = {report["model"] for report in found}
    if len(models) > 1:
        parser.error(f"Expected reports of one model. Received: {sorted(models)}.")
    draw(found, models.pop(), options.output)


def draw(reports, model, path):
    """Writes the plot of all reports as a PNG; the title is the model's name."""
    points = {}
    for report in reports:
        for name, size, accuracy in points_of(report):
            points.setdefault(name, []).append((size / 1000, 100 * accuracy))
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, (label, colour, style) in STYLES.items():
        if name in points:
            x, y = zip(*sorted(points[name]), strict=True)
            axes.semilogx(x, y, style, color=colour, label=label)
    whole = next(100 * r["accuracy"]["float"] for r in reports if "accuracy" in r)
    axes.axhline(whole, color="0.5", linestyle="--", label="float")
    axes.set_xlabel("kB of the .tflite after xz")
    axes.set_ylabel("top-1 in LiteRT (%)")
    axes.set_title(model, size=10)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.grid(which="both", color="0.88")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120)


def points_of(report):
    """Yields `(scheme, bytes, accuracy)` of each file of a report."""
    if "rows" not in report:
        yield (
            report["scheme"],
            report["size"]["tflite_xz_bytes"],
            report["accuracy"]["litert"],
        )
        return
    for row in report["rows"]:
        if row["file"] in STYLES:
            yield row["file"], row["xz_bytes"], row["accuracy"]


if __name__ == "__main__":
    main()
