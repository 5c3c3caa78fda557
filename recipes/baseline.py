"""Baselines: `python -m recipes.baseline --method=NAME [--flags]`.

Trains the float network on by the simplest method of a kind, with the data, the
augmentation and the distillation of the other recipes. Writes `model.keras`,
`model.tflite`, `report.json` and `layers.png`.
"""

from absl import app, flags

import tfcompress as tfc
from recipes.common import (
    baselines,
    epochs,  # noqa: F401 -- a flag
)
from recipes.common.arguments import refuse_arguments, share_or_count
from recipes.common.run import Experiment
from tfcompress.core.budget import parse_budget
from tfcompress.cost import layer_costs, total_cost

FLAGS = flags.FLAGS

# Plain networks of fewer multiplications: name in the report, and the function.
NARROWER = {
    "l1": ("L1 pruning", baselines.l1_pruned),
    "narrow": ("Narrow", baselines.narrow),
}

flags.DEFINE_enum(
    "method",
    None,
    ["uniform", "twn", "magnitude", *NARROWER],
    "uniform: the same bits in every layer. twn: ternary weights by 0.7 of the mean "
    "magnitude (Li et al., 2016). magnitude: pruning by magnitude, with uniform bits. "
    "l1: without the filters of the smallest L1 norm. narrow: all layers narrower, "
    "from scratch.",
)
flags.DEFINE_integer(
    "bits", 2, "Bits of the weights of uniform and magnitude.", lower_bound=2
)
flags.DEFINE_integer(
    "input_bits", 0, "Bits of the activations of uniform; 0 leaves them float."
)
flags.DEFINE_float(
    "zeros", None, "Share of zeros of magnitude, in (0, 1).", lower_bound=0
)
flags.DEFINE_enum(
    "end_layers",
    "8bit",
    ["8bit", "ternary"],
    "Weights of the first and the last layer of twn.",
)
flags.DEFINE_string(
    "multiplications",
    None,
    "Budget of l1 and narrow in multiply-accumulates: a share of the float model's, "
    "such as 1/2, or a count above 1.",
)


def make_schemes():
    if FLAGS.method == "uniform":
        return [tfc.Uniform(FLAGS.bits, FLAGS.input_bits or None)]
    if FLAGS.method == "twn":
        return [baselines.TernaryWeightNetwork(FLAGS.end_layers)]
    if FLAGS.method == "magnitude":
        if FLAGS.zeros is None or not 0 < FLAGS.zeros < 1:
            raise ValueError(
                "Expected --zeros in (0, 1) with --method=magnitude. Received: "
                f"{FLAGS.zeros}."
            )
        return [baselines.MagnitudePruning(FLAGS.zeros, FLAGS.bits)]
    if FLAGS.method is None or FLAGS.multiplications is None:
        raise ValueError(
            "Expected --method, and --multiplications with l1 and narrow. Received: "
            f"--method={FLAGS.method}, --multiplications={FLAGS.multiplications}."
        )
    _budget(1.0)  # checks it
    return []


def main(argv):
    refuse_arguments(argv)
    experiment = Experiment(
        "baseline",
        FLAGS.epochs,
        make_schemes,
        {"method": FLAGS.method, "multiplications": FLAGS.multiplications},
    )
    experiment.train_float()
    if FLAGS.method in NARROWER:
        name, narrower = NARROWER[FLAGS.method]
        macs = _budget(total_cost(layer_costs(experiment.model)).macs)
        budget = {"kind": "macs", "requested": macs}
        small = narrower(experiment.model, macs)
        experiment.train(small, name, ".", FLAGS.learning_rate, budget)
    else:
        experiment.compress(*experiment.schemes)
    experiment.finish()


def _budget(macs):
    """Returns the budget in MACs, for a float model that takes `macs`."""
    return parse_budget(share_or_count(FLAGS.multiplications), macs, "multiplications")


if __name__ == "__main__":
    app.run(main)
