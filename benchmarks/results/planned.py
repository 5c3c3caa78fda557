"""Runs that compare every scheme with the simplest method of its kind.

All methods of a network have the same float network, epochs, augmentation and
distillation. A baseline has the best of three learning rates, on held-out training
images, at one of its budgets. All seeds of a row are run.
"""

import dataclasses

from benchmarks.results.past import lenet_flags
from benchmarks.results.past_bits import MOST_CHOICE, UNIFORM_BOPS, method_of
from benchmarks.results.run import NETWORKS, Run

SEEDS = (0, 1, 2)
HELD_OUT = 5000
RATES = ("0.01", "0.03", "0.1")
FROM_SCRATCH = ("0.05", "0.1", "0.2")  # float networks are trained at 0.1

# Priorities: the first seed and the choice of rates, then the other seeds, then more.
FIRST, OTHERS, LATER = 1, 2, 3

SIZES = {"resnet8": (40, 20, 12), "resnet20": (110, 58, 36, 30)}
SHARES = {
    "resnet8": ("0.5", "0.35", "0.25"),
    "resnet20": ("0.5", "0.455", "0.35", "0.25"),
    "resnet56": ("0.5",),
}
ZEROS = (50, 80, 90)
# Share of the epochs that search.
SEARCH = {"bits": 0.25, "size": 0.5, "macs": 0.3}
# Multiply-accumulates and size of the chained scheme, against each scheme alone.
CHAIN = {"resnet8": ("0.5", 12), "resnet20": ("0.5", 30)}


def _with_seeds(run, priority=FIRST):
    """The runs of a row, one for each seed."""
    for seed in SEEDS:
        yield dataclasses.replace(
            run,
            name=f"{run.name}_seed{seed}",
            seed=seed,
            priority=priority if seed == SEEDS[0] else max(priority, OTHERS),
            outputs={},
            after=tuple(f"{name}_seed{seed}" for name in run.after),
            flags={
                key: value.replace("SEED", str(seed)) if "SEED" in str(value) else value
                for key, value in run.flags.items()
            },
        )


def _run(network, module, name, method, budget, table, flags, **more):
    """A run without a seed, named by its scheme, network, budget and epochs."""
    planned = NETWORKS[network]
    name = f"{name}_{planned.epochs}_epochs"
    if planned.distill:
        flags = {**flags, "distill": True}
        name += "_distilled"
    epochs = planned.epochs
    module = f"recipes.{module}"
    return Run(
        name, module, network, method, budget, flags, epochs, table=table, **more
    )


def _one_phase(network, **flags):
    return {"epochs": NETWORKS[network].epochs, **flags}


def _two_phases(network, first, share, **flags):
    epochs = NETWORKS[network].epochs
    search = round(share * epochs)
    return {first: search, "finetune_epochs": epochs - search, **flags}


def _baseline(network, name, method, table, budgets, chosen_at, rates=RATES):
    """The runs of a baseline: the choice of its rate, then all budgets.

    Args:
        network: str. Key of `NETWORKS`.
        name, method, table: see `Run`.
        budgets: dict. Label of each budget to `(text, flags)`.
        chosen_at: str. Label of the budget at which the rate is chosen.
        rates: tuple of str. Learning rates to choose from.
    """

    def run(label):
        text, flags = budgets[label]
        start = f"{name}_{network}_cifar10_{label}" if label else f"{name}_{network}"
        flags = _one_phase(network, **flags)
        return _run(network, "baseline", start, method, text, table, flags)

    tried = run(chosen_at)
    choices = [
        dataclasses.replace(
            tried,
            name=f"{tried.name}_rate{rate}_held_out",
            flags={**tried.flags, "learning_rate": rate, "holdout": HELD_OUT},
            table="",
            priority=FIRST,
            outputs={},
        )
        for rate in rates
    ]
    yield from choices
    names = tuple(choice.name for choice in choices)
    for label in budgets:
        yield from _with_seeds(dataclasses.replace(run(label), rates=names))


def _ternary(network):
    ours, method = "pruned_ternary", "pruned ternary"
    settings = {
        f"{zeros}zeros": (f"{zeros} % zeros", {"sparsity": zeros / 100})
        for zeros in ZEROS
    }
    settings["mean_threshold"] = ("0.7 mean", {})
    settings["every_kernel"] = ("0.7 mean, every kernel", {"first_last": "ternary"})
    for label, (text, flags) in settings.items():
        name = f"{ours}_{network}_cifar10_{label}"
        flags = _one_phase(network, **flags, learning_rate=0.03)
        yield from _with_seeds(
            _run(network, ours, name, method, text, "ternary", flags)
        )
    yield from _baseline(
        network,
        "twn",
        "plain TWN",
        "ternary",
        {
            "8bit_ends": ("0.7 mean", {"method": "twn"}),
            "every_kernel": (
                "0.7 mean, every kernel",
                {"method": "twn", "end_layers": "ternary"},
            ),
        },
        "8bit_ends",
    )
    yield from _baseline(
        network,
        "magnitude",
        "magnitude pruning, 2 bits",
        "ternary",
        {
            f"{zeros}zeros": (
                f"{zeros} % zeros",
                {"method": "magnitude", "zeros": zeros / 100, "bits": 2},
            )
            for zeros in ZEROS
        },
        "80zeros",
    )


def _bits(network):
    budgets = {
        f"{bits}bits": (f"BOPs of {bits} bits", bops)
        for bits, bops in UNIFORM_BOPS[network].items()
    }
    if network == "resnet20":
        budgets["1_66"] = ("1/66 of the BOPs", "1/66")
    for label, (text, bops) in budgets.items():
        flags = _two_phases(network, "search_epochs", SEARCH["bits"], bops=bops)
        flags.update(uniform_baseline=False, learning_rate=0.02, **MOST_CHOICE)
        yield from _with_seeds(
            _run(
                network,
                "bit_sharing",
                f"bit_sharing_{network}_cifar10_{label}",
                method_of(MOST_CHOICE),
                text,
                "bits",
                flags,
            )
        )
    yield from _baseline(
        network,
        "uniform",
        "uniform bits",
        "bits",
        {
            f"{bits}bits": (
                f"{bits} bits",
                {"method": "uniform", "bits": bits, "input_bits": bits},
            )
            for bits in UNIFORM_BOPS[network]
        },
        "3bits",
    )


def _size_run(network, size, name, method, **flags):
    flags = (
        _two_phases(
            network,
            "admm_epochs",
            SEARCH["size"],
            size=f"{size} kB",
            learning_rate=0.03,
        )
        | flags
    )
    text = f"{size} kB after xz"
    return _run(network, "size_constrained", name, method, text, "size", flags)


def _size(network):
    start = f"size_constrained_{network}_cifar10"
    for size in SIZES[network]:
        run = _size_run(network, size, f"{start}_{size}kB", "size-constrained")
        yield from _with_seeds(run)
    yield from _baseline(
        network,
        "uniform_weights",
        "uniform weights",
        "size",
        {
            f"{bits}bits": (f"{bits} bits", {"method": "uniform", "bits": bits})
            for bits in (4, 3, 2)
        },
        "3bits",
    )


def _macs(network):
    ours = "decomposition"
    for share in SHARES[network]:
        flags = _one_phase(network, macs=share, search_fraction=SEARCH["macs"])
        flags["learning_rate"] = 0.03
        name = f"{ours}_{network}_cifar10_{share}"
        text = f"{share} of the MACs"
        yield from _with_seeds(_run(network, ours, name, ours, text, "macs", flags))
    for name, method, rates in (
        ("l1", "L1 pruning", RATES),
        ("narrow", "narrow, from scratch", FROM_SCRATCH),
    ):
        budgets = {
            share: (
                f"{share} of the MACs",
                {"method": name, "multiplications": share},
            )
            for share in SHARES[network]
        }
        middle = "0.35" if "0.35" in budgets else "0.5"
        yield from _baseline(network, name, method, "macs", budgets, middle, rates)


def _chain(network):
    """Decomposition, then zeros and bits of its result."""
    share, size = CHAIN[network]
    (first, *_) = [
        run for run in _macs(network) if run.budget.startswith(f"{share} of")
    ]
    model = f"{{work}}/{first.row}_seedSEED/model.keras"
    run = _size_run(
        network,
        size,
        f"chain_{network}_cifar10_{size}kB",
        f"decomposition to {share}, then size-constrained",
        model=model,
    )
    yield from _with_seeds(dataclasses.replace(run, after=(first.row,)))


def _stock(network):
    name = f"stock_{network}_cifar10"
    yield Run(
        name,
        "benchmarks.artifacts",
        network,
        "post-training",
        "",
        {},
        0,
        table="files",
        priority=FIRST,
        outputs={name: "artifacts.json"},
    )


def _lenet():
    epochs = 110
    flags = {"admm_epochs": 70, "finetune_epochs": 40, **lenet_flags()}
    yield from _with_seeds(
        Run(
            f"size_constrained_lenet5_mnist_2000_{epochs}_epochs",
            "recipes.size_constrained",
            "lenet5_mnist",
            "size-constrained",
            "1/2000 of the value bits",
            flags,
            epochs,
            table="size",
        ),
        LATER,
    )


def planned_runs() -> list[Run]:
    """Returns the runs in the order in which they are to be made.

    The networks that train fast come first, and for each the runs of the first seed. A
    run comes after those that it needs.
    """
    runs = []
    for network in ("resnet8", "resnet20"):
        makers = (_stock, _ternary, _bits, _size, _macs, _chain)
        of_network = [run for make in makers for run in make(network)]
        runs += sorted(of_network, key=lambda run: run.priority)
    others = [*_macs("resnet56"), *_lenet()]
    later = [dataclasses.replace(run, priority=LATER) for run in others]
    return runs + later
