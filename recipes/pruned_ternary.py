"""Ternary weights: `python -m recipes.pruned_ternary [--flags]`.

Trains a float network unless `--model` names a trained one. Trains it on with ternary
weights, and writes `model.keras`, `model.tflite`, `report.json` and `layers.png`.
"""

from absl import app, flags

import tfcompress as tfc
from recipes.common import activation_bits, epochs  # noqa: F401 -- flags
from recipes.common.arguments import refuse_arguments
from recipes.common.run import Experiment

FLAGS = flags.FLAGS


flags.DEFINE_float(
    "sparsity",
    None,
    "Share of zero weights in each ternary kernel, between 0 and 1: the size knob. By "
    "default weights below 0.7 of the mean magnitude of their filter, about 0.43.",
)
flags.DEFINE_enum(
    "first_last",
    "8bit",
    ["8bit", "ternary", "float"],
    "Weights of the first and the last layer.",
)


def make_schemes():
    return [
        tfc.PrunedTernary(
            FLAGS.sparsity, FLAGS.first_last, activation_bits=FLAGS.activation_bits
        )
    ]


def main(argv):
    refuse_arguments(argv)
    experiment = Experiment("pruned_ternary", FLAGS.epochs, make_schemes)
    experiment.train_float()
    experiment.compress(*experiment.schemes)
    experiment.finish()


if __name__ == "__main__":
    app.run(main)
