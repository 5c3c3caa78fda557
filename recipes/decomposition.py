"""Low rank and fewer channels under a budget: `python -m recipes.decomposition`.

Trains a float network unless `--model` names a trained one. Decomposes and prunes it in
one training, and writes `model.keras`, of plain Keras layers, `model.tflite`,
`report.json` and `layers.png`. With --baselines, also writes those of two baselines.
"""

from absl import app, flags

import tfcompress as tfc
from recipes.common import (
    baselines,
    epochs,  # noqa: F401 -- a flag
)
from recipes.common.arguments import refuse_arguments, share_or_count
from recipes.common.comparison import print_comparison
from recipes.common.run import Experiment
from recipes.common.train import FLOAT_LEARNING_RATE
from tfcompress.core.budget import parse_budget
from tfcompress.cost import layer_costs, total_cost

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "macs",
    "1/2",
    "Budget in multiply-accumulates: a share of the float model's, such as 1/2 or "
    "0.45, or a count above 1.",
)
flags.DEFINE_float(
    "search_fraction",
    0.5,
    "Share of the epochs that shrink channels and ranks, before they are removed.",
    lower_bound=0.01,
    upper_bound=1.0,
)
flags.DEFINE_integer(
    "round_to",
    1,
    "Channels of a layer stay a multiple of this.",
    lower_bound=1,
)
flags.DEFINE_boolean(
    "baselines",
    False,
    "Also train two networks with as many MACs, for as many epochs: one without the "
    "filters of the smallest L1 norm, and a narrower one from scratch.",
)


def make_schemes():
    return [
        tfc.Decomposition(
            macs=share_or_count(FLAGS.macs),
            round_to=FLAGS.round_to,
            search_fraction=FLAGS.search_fraction,
        )
    ]


def main(argv):
    refuse_arguments(argv)
    experiment = Experiment("decomposition", FLAGS.epochs, make_schemes)
    experiment.train_float()
    (scheme,) = experiment.schemes
    model = experiment.model
    macs = parse_budget(scheme.macs, total_cost(layer_costs(model)).macs, "macs")
    budget = {"kind": "macs", "requested": macs}
    reports = [experiment.compress(scheme, budget=budget)]
    if FLAGS.baselines:
        for name, subfolder, baseline, rate in (
            ("L1 pruning", "l1", baselines.l1_pruned, FLAGS.learning_rate),
            ("Narrow", "narrow", baselines.narrow, FLOAT_LEARNING_RATE),
        ):
            compared = baseline(model, macs)
            reports.append(experiment.train(compared, name, subfolder, rate, budget))
    experiment.finish()
    print_comparison(reports, "macs")


if __name__ == "__main__":
    app.run(main)
