"""Bits and filters under a BOPs budget: `python -m recipes.bit_sharing [--flags]`.

Trains a float network unless `--model` names a trained one. Searches every layer's
weight bits, activation bits and filter groups, and fine-tunes the result. Writes
`model.keras`, `model.tflite`, `report.json`, `layers.png` and `gates.png`, and to
`uniform/` the same network with 4 bits throughout, trained alike.
"""

from absl import app, flags

import tfcompress as tfc
from recipes.common import finetune_epochs  # noqa: F401 -- a flag
from recipes.common.arguments import refuse_arguments, share_or_count
from recipes.common.comparison import print_comparison
from recipes.common.history import BitHistory
from recipes.common.run import Experiment
from tfcompress import reporting
from tfcompress.core.budget import parse_budget
from tfcompress.cost import layer_costs, total_cost

FLAGS = flags.FLAGS
UNIFORM_BITS = 4

flags.DEFINE_string(
    "bops",
    "1/60",
    "Budget in bit operations, MACs * weight bits * activation bits: a share of the "
    "float model's (32 x 32), such as 1/60 or 0.02, or a count above 1.",
)
flags.DEFINE_list(
    "candidates",
    ["2", "4", "8"],
    "Bits that each layer's weights and inputs may have: numbers from 2 to 8.",
)
flags.DEFINE_boolean(
    "search_first_last",
    False,
    "Search the bits of the first and the last layer too, which otherwise have 8.",
)
flags.DEFINE_integer(
    "search_epochs",
    4,
    "Epochs of the search, before fine-tuning. One learning-rate schedule spans both. "
    "0: the allocation of the least measured cost is trained from the start.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "group_size",
    4,
    "Filters that are removed together; 0 keeps all filters.",
    lower_bound=0,
)
flags.DEFINE_boolean(
    "uniform_baseline",
    True,
    f"Also train with {UNIFORM_BITS} bits throughout, for as many epochs.",
)


def make_schemes():
    schemes = [
        tfc.BitSharing(
            bops=share_or_count(FLAGS.bops),
            weight_bits=_candidates(),
            activation_bits=_candidates(),
            first_last="searched" if FLAGS.search_first_last else "8bit",
            group_size=FLAGS.group_size or None,
            search_fraction=FLAGS.search_epochs / _epochs(),
        )
    ]
    if FLAGS.uniform_baseline:
        schemes.append(tfc.Uniform(UNIFORM_BITS, UNIFORM_BITS))
    return schemes


def _candidates():
    return [int(x) if x.isdecimal() else x for x in FLAGS.candidates]


def _epochs():
    return FLAGS.search_epochs + FLAGS.finetune_epochs


def main(argv):
    refuse_arguments(argv)
    experiment = Experiment("bit_sharing", _epochs(), make_schemes)
    experiment.train_float()
    own, *uniform = experiment.schemes
    history = BitHistory(experiment.unfinished.folder / "bits.json")
    float_bops = total_cost(layer_costs(experiment.model)).bops
    budget = {"kind": "bops", "requested": parse_budget(own.bops, float_bops, "bops")}
    reports = [experiment.compress(own, callbacks=[history], budget=budget)]
    reporting.plot_gates(history.epochs, experiment.folder / "gates.png")
    reports += [experiment.compress(scheme, "uniform") for scheme in uniform]
    experiment.finish()
    print_comparison(reports, "bops")


if __name__ == "__main__":
    app.run(main)
