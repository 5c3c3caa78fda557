"""Ternary weights: `python -m recipes.pruned_ternary [--flags]`.

Trains a float network unless `--model` names a trained one, makes its weights ternary,
trains on, and writes `model.keras`, `model.tflite`, `report.json` and `layers.png`.
"""

from absl import app, flags

import tfcompress as tfc
from recipes.common.run import run

flags.DEFINE_float(
    "sparsity",
    None,
    "Share of zero weights in each ternary kernel, between 0 and 1: the size knob. By "
    "default each filter gets what approximates it best, about 0.45.",
)
flags.DEFINE_enum(
    "first_last",
    "8bit",
    ["8bit", "ternary", "float"],
    "What becomes of the first and the last layer.",
)


def make_scheme():
    return tfc.PrunedTernary(flags.FLAGS.sparsity, flags.FLAGS.first_last)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Expected only --flags. Received: {argv[1:]}.")
    run("pruned_ternary", make_scheme)


if __name__ == "__main__":
    app.run(main)
