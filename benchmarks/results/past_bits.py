"""Runs of bit sharing and uniform bits whose reports are committed."""

import dataclasses
from collections.abc import Mapping

from benchmarks.results.run import EARLIER, Run

# Bit operations of uniform bits, with 8 bits in the first and the last layer.
UNIFORM_BOPS = {
    "resnet8": {4: 221290496, 3: 136880128, 2: 76587008},
    "resnet20": {4: 670081024, 3: 389324800, 2: 188784640},
}
# Flags of a search that may choose everything.
MOST_CHOICE = {"candidates": "2,3,4,8", "search_first_last": True}
_RATE = {"learning_rate": 0.02}


def method_of(flags: Mapping[str, object]) -> str:
    """Returns the method in tables: bit sharing, with what else it may choose."""
    method = "bit sharing"
    if "candidates" in flags:
        bits = str(flags["candidates"]).replace(",", ", ")
        method += f" of {bits} bits"
    if "search_first_last" in flags:
        method += ", first and last layer too"
    return method


def _bits(
    name,
    network,
    budget,
    search,
    finetune,
    uniform=None,
    past="",
    table="bits",
    **more,
):
    """A run of bit sharing, and that of its uniform baseline."""
    flags = {
        "bops": budget,
        "search_epochs": search,
        "finetune_epochs": finetune,
        **more,
        "uniform_baseline": uniform is not None,
    }
    name = f"bit_sharing_{name}"
    outputs = {name: "report.json"}
    if uniform:
        outputs[uniform] = "uniform/report.json"
    return Run(
        name,
        "recipes.bit_sharing",
        network,
        method_of(more) if search else f"{method_of(more)}, no search",
        _described(network, budget),
        flags,
        search + finetune,
        table=table,
        outputs=outputs,
        past=past,
    )


def _described(network, budget):
    if "/" in budget:
        return f"{budget} of the BOPs"
    (bits,) = [b for b, x in UNIFORM_BOPS[network].items() if str(x) == budget]
    return f"BOPs of {bits} bits"


def _equal(network, bits, epochs):
    """Bit sharing and uniform bits with equal BOPs, for as many epochs."""
    start = f"{network}_cifar10"
    budget = str(UNIFORM_BOPS[network][bits])
    for kind, search in (("no_search", 0), ("least_cost", 1)):
        yield _bits(
            f"{start}_{bits}bits_{kind}_{epochs}_epochs",
            network,
            budget,
            search,
            epochs - search,
            **_RATE,
            **MOST_CHOICE,
        )
    yield Run(
        f"uniform_{start}_{bits}bits_{epochs}_epochs",
        "recipes.baseline",
        network,
        "uniform bits",
        f"{bits} bits",
        {
            "method": "uniform",
            "bits": bits,
            "input_bits": bits,
            "epochs": epochs,
            **_RATE,
        },
        epochs,
        table="bits",
    )


def _other_seeds(run):
    """Further runs of a row, which has the run with seed 0."""
    for seed in (1, 2):
        name = f"{run.name}_seed{seed}"
        yield dataclasses.replace(run, name=name, seed=seed, outputs={})


def _earlier_runs_of_resnet8():
    start, twelve = "resnet8_cifar10", (1, 11)
    past = {**_RATE, "past": EARLIER}
    yield _bits(
        start, "resnet8", "1/58", *twelve, uniform="uniform_resnet8_cifar10", **past
    )
    out = {**past, "table": ""}
    yield _bits(f"{start}_fast_search", "resnet8", "1/58", *twelve, **out)
    yield _bits(
        f"{start}_12_epochs_distilled", "resnet8", "1/58", *twelve, **past, distill=True
    )
    uniform = "uniform_resnet8_cifar10_equal"
    four = ("resnet8", str(UNIFORM_BOPS["resnet8"][4]), *twelve)
    yield _bits(f"{start}_equal", *four, uniform=uniform, **out)
    three = ("resnet8", str(UNIFORM_BOPS["resnet8"][3]), *twelve)
    more, ends = {"candidates": "2,3,4,8"}, {"search_first_last": True}
    yield _bits(f"{start}_3bits_12_epochs", *three, **out)
    yield _bits(f"{start}_3bits_adapted", *three, **out)
    yield _bits(f"{start}_3bits_of_2348", *three, **out, **more)
    yield _bits(f"{start}_3bits_of_2348_all_layers", *three, **out, **more, **ends)
    two = ("resnet8", str(UNIFORM_BOPS["resnet8"][2]), *twelve)
    yield _bits(f"{start}_2bits_12_epochs", *two, **out)
    yield _bits(f"{start}_2bits_of_2348_all_layers", *two, **out, **more, **ends)


def bits_runs() -> list[Run]:
    """Returns the runs, in the order of the table."""
    start = "resnet20_cifar10"
    past = {**_RATE, "past": EARLIER}
    uniform = "uniform_resnet20_cifar10"
    return [
        *_equal("resnet8", 2, 12),
        *(other for run in _equal("resnet8", 2, 12) for other in _other_seeds(run)),
        *(run for bits in (3, 4) for run in _equal("resnet8", bits, 12)),
        *_earlier_runs_of_resnet8(),
        *_equal("resnet20", 2, 10),
        *(other for run in _equal("resnet20", 2, 10) for other in _other_seeds(run)),
        _bits(start, "resnet20", "1/66", 2, 5, uniform, **past),
        _bits(f"{start}_4_epochs", "resnet20", "1/66", 1, 3, **past),
        _bits(
            f"{start}_4_epochs_distilled",
            "resnet20",
            "1/66",
            1,
            3,
            **past,
            distill=True,
        ),
        _bits(
            "lenet5_mnist5k", "lenet5", "1/60", 4, 6, "uniform_lenet5_mnist5k", EARLIER
        ),
    ]
