"""Zeros and bits under one size: `python -m recipes.size_constrained [--flags]`.

Trains a float network unless `--model` names a trained one. Searches every layer's
zeros and bits, and fine-tunes the result. Writes `model.keras`, `model.tflite`,
`report.json`, `layers.png` and `sizes.png`. With several sizes each training starts
from the model of the size before; all but the last write to `chain_1/`, `chain_2/`, ...
"""

from absl import app, flags

import tfcompress as tfc
from recipes.common import activation_bits, finetune_epochs  # noqa: F401 -- flags
from recipes.common.arguments import refuse_arguments, share_or_count
from recipes.common.history import SizeHistory
from recipes.common.run import Experiment
from tfcompress import reporting

FLAGS = flags.FLAGS


flags.DEFINE_list(
    "size",
    None,
    "Budget in bytes, such as '100 kB', or a share of the float weights' bytes, such "
    "as 1/30 (the default). Or a chain of budgets, such as 1/10,1/30,1/100.",
)
flags.DEFINE_list(
    "value_bits",
    None,
    "Budget in the paper's unit, in place of --size: bits times non-zero weights, or a "
    "share of the float weights' bits, such as 1/500. Or a chain of budgets.",
)
flags.DEFINE_enum(
    "codebook",
    "uniform",
    ["uniform", "kmeans"],
    "Levels of each layer: a uniform grid, or k-means centroids, which take 8 bits a "
    "weight unless the file is compressed.",
)
flags.DEFINE_enum(
    "compression",
    "xz",
    ["xz", "none"],
    "Compression of the file that is measured.",
)
flags.DEFINE_float(
    "rho",
    None,
    "Penalty parameter of ADMM; by default it follows from the learning rates.",
    lower_bound=0.0,
)
flags.DEFINE_integer(
    "admm_epochs",
    6,
    "Epochs of the search, before fine-tuning. One learning-rate schedule spans both.",
    lower_bound=1,
)
flags.DEFINE_float(
    "weight_decay", 1e-4, "L2 penalty on the kernels in compressed training."
)


@flags.multi_flags_validator(
    ["size", "value_bits"], "expected one of --size and --value_bits"
)
def _one_budget(values):
    return values["size"] is None or values["value_bits"] is None


@flags.multi_flags_validator(
    ["size", "value_bits", "activation_bits"],
    "expected one budget with --activation_bits: the next one starts with float "
    "activations",
)
def _one_budget_with_quantized_activations(values):
    budgets = values["size"] or values["value_bits"] or []
    return values["activation_bits"] is None or len(budgets) <= 1


def make_schemes():
    unit = "value_bits" if FLAGS.value_bits else "size"
    return [
        tfc.SizeConstrained(
            **{unit: share_or_count(budget)},
            codebook=FLAGS.codebook,
            compression=FLAGS.compression,
            rho=FLAGS.rho,
            search_fraction=FLAGS.admm_epochs / _epochs(),
            weight_decay=FLAGS.weight_decay,
            activation_bits=FLAGS.activation_bits,
        )
        for budget in FLAGS.value_bits or FLAGS.size or ["1/30"]
    ]


def _epochs():
    return FLAGS.admm_epochs + FLAGS.finetune_epochs


def main(argv):
    refuse_arguments(argv)
    experiment = Experiment("size_constrained", _epochs(), make_schemes)
    experiment.train_float()
    start = None
    for number, scheme in enumerate(experiment.schemes, start=1):
        is_last = number == len(experiment.schemes)
        subfolder = "." if is_last else f"chain_{number}"
        history = SizeHistory(experiment.unfinished.folder / f"sizes_{number}.json")
        budget = {"kind": scheme.unit(), "requested": scheme.total(experiment.model)}
        experiment.compress(scheme, subfolder, [history], budget, start)
        reporting.plot_sizes(
            history.epochs,
            experiment.folder / subfolder / "sizes.png",
            scheme.unit().replace("_", " "),
        )
        if not is_last:
            start = tfc.dequantize(experiment.student)
    experiment.finish()


if __name__ == "__main__":
    app.run(main)
