"""Runs whose reports are committed, by this revision and by earlier ones."""

import dataclasses

from benchmarks.results.past_bits import bits_runs
from benchmarks.results.run import EARLIER, Run

_VARIANT = "a few changed lines, described in docs/method_notes.md"
_AVERAGES = "a revision that took ranges as averages over samples"
_ALL_BITS = "a revision that did not round batch normalizations"
_ESTIMATED = "a revision that estimated the size of the codes that freeze"

# Reports that are in no table of results.md, and how they are made.
OF_BENCHMARKS = {
    "micro": "python -m benchmarks.devices.micro",
    "micro_64kB": "python -m benchmarks.devices.micro",
    "agreement": "python -m benchmarks.devices.agreement",
    "phones": "python -m benchmarks.devices.phones, docs/files.md has the networks",
    "pruned_ternary_resnet8_cifar10_activations": "docs/files.md has the command",
    "segmentation": "python -m benchmarks.tasks segmentation",
    "size_constrained_resnet8_cifar10_activations": "docs/files.md has the command",
    "size_constrained_losses": "trainings on a GPU, described in docs/method_notes.md",
    **dict.fromkeys(
        (
            f"uniform_{network}_cifar10_{bits}_held_out"
            for network in ("resnet8", "resnet20")
            for bits in ("w2a4", "w4a2")
        ),
        "python -m recipes.baseline, docs/method_notes.md has the flags",
    ),
    **dict.fromkeys(
        (
            "ternary_changes",
            "decomposition_changes",
            "bit_sharing_changes",
            "size_constrained_changes",
        ),
        "small changes of a recipe, described in docs/method_notes.md",
    ),
    "text": "python -m benchmarks.tasks text --epochs=8",
    **dict.fromkeys(
        ("step_time_mobilenetv2", "step_time_resnet50"),
        "python -m benchmarks.step_time, they have the flags",
    ),
    "startup_mobilenet": "python -m benchmarks.startup",
}


def _ternary(name, network, epochs, budget="0.7 mean", table="ternary", **more):
    past = more.pop("past", "")
    flags = {"epochs": epochs, **more}
    method = "pruned ternary"
    module = "recipes.pruned_ternary"
    name = f"pruned_ternary_{name}"
    return Run(
        name, module, network, method, budget, flags, epochs, table=table, past=past
    )


def _ternary_runs():
    every, rate = {"first_last": "ternary"}, {"learning_rate": 0.03}
    faster = {"learning_rate": 0.05}
    start = "resnet8_cifar10"
    yield _ternary(f"{start}_12_epochs_mean_threshold", "resnet8", 12, **rate)
    yield _twn("twn_resnet8_cifar10_12_epochs", 12, **rate)
    yield _ternary(f"{start}_60_epochs_mean_threshold", "resnet8", 60, **faster)
    start = "resnet20_cifar10"
    all_layers = ("resnet20", 15, "0.7 mean, every kernel")
    yield _ternary(f"{start}_15_epochs_mean_threshold", *all_layers, **every, **faster)
    yield _ternary("lenet5_mnist5k_mean_threshold", "lenet5", 10)
    yield from _earlier_ternary_runs(every, rate, faster)


def _earlier_ternary_runs(every, rate, faster):
    """Runs with the threshold of the best cosine."""

    def run(name, network, epochs, **flags):
        return _ternary(name, network, epochs, "", "", **flags, past=EARLIER)

    yield _ternary(
        "mobilenetv2_mnist5k",
        "mobilenetv2",
        2,
        "50 % zeros",
        float_epochs=3,
        batch_size=64,
        sparsity=0.5,
        past=EARLIER,
    )
    for suffix in ("", "_held_thresholds", "_clipped_gradients", "_range"):
        yield run(f"lenet5_mnist5k{suffix}", "lenet5", 10)
    start = "resnet20_cifar10"
    yield run(f"{start}_15_epochs", "resnet20", 15, **every, **faster)
    yield run(f"{start}_4_epochs", "resnet20", 4, **every, **rate)
    yield run(f"{start}_4_epochs_range", "resnet20", 4, **every, **rate)
    yield run(
        f"{start}_4_epochs_distilled", "resnet20", 4, **every, **rate, distill=True
    )
    start = "resnet8_cifar10"
    yield run(f"{start}_20_epochs", "resnet8", 20, **rate)
    for suffix in ("", "_held_thresholds", "_range"):
        yield run(f"{start}_12_epochs{suffix}", "resnet8", 12, **rate)
    yield run(f"{start}_12_epochs_distilled", "resnet8", 12, **rate, distill=True)
    for suffix in ("", "_range"):
        yield run(f"{start}_60_epochs{suffix}", "resnet8", 60, **faster)
    yield run(f"{start}_8_epochs", "resnet8", 8, **every, **faster)


def _twn(name, epochs, **flags):
    """A run of plain ternary weights on ResNet-8, the baseline of pruned ones."""
    return Run(
        name,
        "recipes.baseline",
        "resnet8",
        "plain TWN",
        "0.7 mean",
        {"method": "twn", "epochs": epochs, **flags},
        epochs,
        table="ternary",
    )


def _size(name, network, budget, admm, finetune, table="", past="", **more):
    seed = more.pop("seed", 0)
    flags = {"admm_epochs": admm, "finetune_epochs": finetune, **more}
    return Run(
        f"size_constrained_{name}",
        "recipes.size_constrained",
        network,
        "size-constrained",
        budget,
        flags,
        admm + finetune,
        seed,
        table,
        past=past,
    )


def lenet_flags(**changes):
    """Returns the flags of LeNet-5 at 1/2000 of the value bits."""
    flags = {
        "value_bits": "1/2000",
        "codebook": "kmeans",
        "batch_size": 256,
        "learning_rate": 0.05,
        "weight_decay": 5e-4,
        "float_epochs": 12,
    }
    return {**flags, "max_shift": 1, **changes}


def _size_runs_of_lenet():
    def run(name, admm, finetune, table="", past="", **changes):
        flags = lenet_flags(**changes)
        budget = "1/2000 of the value bits"
        start = ("lenet5_mnist", budget, admm, finetune, table, past)
        return _size(f"lenet5_mnist_{name}", *start, **flags)

    still = {"max_shift": 0, "rho": 0.05}
    first = {**still, "learning_rate": 0.1, "float_epochs": 20}
    yield run("published", 90, 30, **first, past=EARLIER)
    for seed in range(3):
        yield run(f"seed{seed}", 42, 16, **still, seed=seed, past=EARLIER)
    yield run("together_seed0", 80, 30, **still, past=EARLIER)
    yield run("34_epochs", 24, 10, **still, past=EARLIER)
    yield run("34_epochs_relative", 24, 10, **still, past=_VARIANT)
    for seed in range(3):
        flags = {"rho": 0.05, "seed": seed, "past": EARLIER}
        yield run(f"shifted_free_bits_seed{seed}", 80, 30, **flags)
    for seed in range(3):
        yield run(f"shifted_seed{seed}", 70, 40, "size", seed=seed, past=EARLIER)


def _size_runs_of_resnets():
    def run(network, size, admm, finetune, suffix="", table="", past=""):
        flags = {"size": f"{size} kB", "learning_rate": 0.03}
        flags["precision"] = "mixed_bfloat16"
        name = f"{network}_cifar10_{size}kB{suffix}"
        start = (network, f"{size} kB after xz", admm, finetune, table, past)
        return _size(name, *start, **flags)

    yield run("resnet8", 40, 7, 5, table="size", past=EARLIER)
    yield run("resnet8", 20, 6, 6, table="size", past=EARLIER)
    yield run("resnet8", 20, 6, 6, "_fast_search", "size")
    for size in (20, 12):
        name, budget = f"resnet8_cifar10_{size}kB", f"{size} kB after xz"
        flags = {"size": f"{size} kB", "learning_rate": 0.03}
        start = ("resnet8", budget, 30, 30)
        yield _size(f"{name}_60_epochs", *start, past=_ALL_BITS, **flags)
        rounded = f"{name}_60_epochs_rounded"
        past = _ESTIMATED if size == 12 else ""
        yield _size(rounded, *start, "size", past=past, **flags)
        start = ("resnet8", budget, 15, 15)
        yield _size(f"{name}_30_epochs_unrounded", *start, past=_ALL_BITS, **flags)
    yield run("resnet8", 12, 4, 4, table="size", past=EARLIER)
    yield run("resnet20", 110, 2, 2, table="size", past=EARLIER)
    yield run("resnet20", 58, 5, 3, table="size", past=EARLIER)
    yield run("resnet20", 36, 4, 4, table="size", past=EARLIER)
    flags = {"size": "36 kB", "learning_rate": 0.03}
    name, start = "resnet20_cifar10_36kB_30_epochs", ("resnet20", "36 kB after xz")
    yield _size(name, *start, 15, 15, past=_ALL_BITS, **flags)
    flags["past"] = _ESTIMATED
    yield _size(f"{name}_rounded", *start, 15, 15, "size", **flags)
    for network, size, admm, finetune in (
        ("resnet8", 12, 5, 3),
        ("resnet8", 20, 7, 5),
        ("resnet20", 36, 5, 3),
        ("resnet20", 58, 5, 3),
    ):
        start = (network, size, admm, finetune)
        yield run(*start, "_relative", past=_VARIANT)
        yield run(*start, "_squared_errors", past=_VARIANT)
        if size != 58:
            yield run(*start, "_free_bits", past=EARLIER)
    for suffix in ("6_epochs", "admm", "weaker_admm", "all_weights"):
        yield run("resnet8", 20, 4, 2, f"_{suffix}", past=_VARIANT)
    yield run("resnet8", 20, 2, 1, "_before", past=EARLIER)


def _chain():
    """Zeros and bits of a network with fewer channels and ranks."""
    source = "decomposition_resnet20_cifar10_0.455_30_epochs"
    flags = {"model": f"{{work}}/{source}/model.keras", "size": "30 kB"}
    flags["learning_rate"] = 0.03
    run = _size("", "resnet20", "30 kB after xz", 12, 12, "size", **flags)
    return dataclasses.replace(
        run,
        name="chain_resnet20_cifar10_30kB_24_epochs",
        outputs={},
        method="decomposition to 0.455, then size-constrained",
        after=(source,),
    )


def _macs(name, network, budget, epochs, outputs=(), past="", table="macs", **more):
    flags = {"macs": budget, "epochs": epochs, **more}
    if outputs:
        flags["baselines"] = True
    name = f"decomposition_{name}"
    paths = {f"{x}_{y}": f"{x}/report.json" for x, y in outputs}
    return Run(
        name,
        "recipes.decomposition",
        network,
        "decomposition",
        f"{budget} of the MACs",
        flags,
        epochs,
        table=table,
        outputs={name: "report.json", **paths},
        past=past,
    )


def _narrower(method, name, network, share, epochs, rate):
    """A run of a plain network of fewer multiplications, a baseline."""
    flags = {"multiplications": share, "epochs": epochs, "learning_rate": rate}
    return Run(
        f"{method}_{name}",
        "recipes.baseline",
        network,
        {"l1": "L1 pruning", "narrow": "narrow, from scratch"}[method],
        f"{share} of the MACs",
        {"method": method, **flags},
        epochs,
        table="macs",
    )


def _macs_runs():
    flags = {"search_fraction": 0.25, "learning_rate": 0.03}
    for network, share, epochs in (
        ("resnet8", "0.5", 12),
        ("resnet8", "0.25", 12),
        ("resnet20", "0.455", 10),
    ):
        start = (f"{network}_cifar10_{share}_{epochs}_epochs", network, share, epochs)
        yield _macs(*start, **flags)
        yield _narrower("l1", *start, 0.03)
        if share == "0.5":
            yield _narrower("narrow", *start, 0.1)
    start = ("resnet20_cifar10_0.455_30_epochs", "resnet20", "0.455", 30)
    yield _macs(*start, search_fraction=0.15, learning_rate=0.05)
    yield _narrower("l1", *start, 0.05)
    yield from _earlier_macs_runs()


def _earlier_macs_runs():
    """Runs in which the scores followed the search."""
    outputs = [("l1", "lenet5_mnist5k"), ("narrow", "lenet5_mnist5k")]
    yield _macs("lenet5_mnist5k", "lenet5", "0.5", 10, outputs, EARLIER)
    start, flags = "resnet20_cifar10", {"search_fraction": 0.4, "learning_rate": 0.03}
    first = ("resnet20", "0.455", 10)
    yield _macs(start, *first, past=EARLIER, table="", **flags)
    other = {"search_fraction": 0.3, "learning_rate": 0.02}
    yield _macs(f"{start}_ranks", *first, past=EARLIER, table="", **other)
    outputs = [("l1", "resnet20_cifar10")]
    yield _macs(f"{start}_data", *first, outputs, EARLIER, **flags)
    flags = {"search_fraction": 0.25, "learning_rate": 0.02}
    flags["precision"] = "mixed_bfloat16"
    yield _macs("resnet56_cifar10", "resnet56", "0.5", 4, past=EARLIER, **flags)


def _artifacts():
    ternary = "pruned_ternary_{}_cifar10_{}_epochs_mean_threshold"
    for network, source, data, past in (
        ("resnet8", ternary.format("resnet8", 60), "cifar10", ""),
        ("resnet20", ternary.format("resnet20", 15), "cifar10", ""),
        ("mobilenetv2", "pruned_ternary_mobilenetv2_mnist5k", "mnist5k", _AVERAGES),
    ):
        name = f"artifacts_{network}_{data}"
        flags = {"finalized": f"{{work}}/{source}/model.keras"}
        if network == "mobilenetv2":
            flags["model"] = f"{{work}}/{source}/float.keras"
            flags["input_scaling"] = "standardize"
        yield Run(
            name,
            "benchmarks.artifacts",
            network,
            "bit sharing" if "bit" in source else "pruned ternary",
            "",
            flags,
            0,
            table="files",
            outputs={name: "artifacts.json"},
            after=(source,),
            past=past,
        )


def past_runs() -> list[Run]:
    """Returns the runs of the committed reports, in the order of the tables."""
    return [
        *_ternary_runs(),
        *bits_runs(),
        *_size_runs_of_resnets(),
        *_size_runs_of_lenet(),
        *_macs_runs(),
        _chain(),
        *_artifacts(),
    ]
