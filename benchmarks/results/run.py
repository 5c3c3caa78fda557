"""Trainings whose reports are in `docs/reports`: networks, runs and their commands."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping

# The `past` of runs whose commands give other results today.
EARLIER = "an earlier revision of the library"


@dataclasses.dataclass(frozen=True)
class Network:
    """Float network with its data.

    Attributes:
        title: str. Network and data, in tables.
        flags: dict. Flags of the recipes, by name. "{models}" is the folder of
            pretrained networks.
        seconds: float. Time of a float epoch on two quiet CPU cores, for estimates.
        epochs: int. Epochs of planned runs.
        distill: bool. Whether planned runs are distilled, all methods alike.
    """

    title: str
    flags: Mapping[str, object]
    seconds: float
    epochs: int = 0
    distill: bool = False


def _pretrained(file, scaling):
    return {
        "model": f"{{models}}/{file}",
        "input_scaling": scaling,
        "dataset": "cifar10",
    }


NETWORKS = {
    "resnet8": Network(
        "ResNet-8, CIFAR-10", _pretrained("resnet8_cifar10.h5", "pixels"), 22, 30
    ),
    "resnet20": Network(
        "ResNet-20, CIFAR-10",
        _pretrained("resnet20_cifar10.keras", "imagenet"),
        85,
        40,
        distill=True,
    ),
    "resnet56": Network(
        "ResNet-56, CIFAR-10",
        _pretrained("resnet56_cifar10.keras", "imagenet"),
        280,
        20,
        distill=True,
    ),
    "lenet5": Network("LeNet-5, mnist5k", {"model": "lenet5", "dataset": "mnist5k"}, 2),
    "lenet5_mnist": Network(
        "LeNet-5, MNIST", {"model": "lenet5", "dataset": "mnist"}, 12
    ),
    "mobilenetv2": Network(
        "MobileNetV2, mnist5k", {"model": "mobilenetv2", "dataset": "mnist5k"}, 75
    ),
}

# Time of an epoch, relative to a float one.
_SLOWNESS = {
    "recipes.pruned_ternary": 1.2,
    "recipes.bit_sharing": 1.9,
    "recipes.size_constrained": 1.5,
    "recipes.decomposition": 1.2,
    "recipes.baseline": 1.2,
}
_DISTILLED = 1.35
_FIXED_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Run:
    """One call of a recipe or a benchmark, whose reports are committed.

    Attributes:
        name: str. Name of its report and of its folder.
        module: str. Module to run, such as "recipes.pruned_ternary".
        network: str. Key of `NETWORKS`.
        method: str. Name in tables.
        budget: str. Budget in tables.
        flags: dict. Flags besides those of the network. "{models}" and "{work}" are the
            folders of pretrained networks and of the runs.
        epochs, seed: int.
        table: str. Table that shows it: "ternary", "bits", "size", "macs" or "files".
            Empty for runs that `docs/method_notes.md` tells of.
        priority: int. 1 is to be run first; 0 are runs whose reports are committed.
        outputs: dict. Names of reports to their paths in the folder of the run.
        rates: tuple of str. Names of runs. Its learning rate is that of the best one.
        after: tuple of str. Names of runs whose files its flags name.
        past: str. Reason why its command gives another result today, or empty.
    """

    name: str
    module: str
    network: str
    method: str
    budget: str
    flags: Mapping[str, object]
    epochs: int
    seed: int = 0
    table: str = ""
    priority: int = 0
    outputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rates: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    past: str = ""

    def __post_init__(self):
        if not self.outputs:
            object.__setattr__(self, "outputs", {self.name: "report.json"})

    @property
    def row(self) -> str:
        """Name without the seed: runs of one row of a table share it."""
        return re.sub(r"_seed\d+$", "", self.name)

    def all_flags(self) -> dict[str, object]:
        """Returns the flags of the network and its own, with the seed."""
        seed = {"seed": self.seed} if self.module.startswith("recipes.") else {}
        return {**NETWORKS[self.network].flags, **self.flags, **seed}

    def estimate(self) -> float:
        """Returns the seconds that it takes on two quiet CPU cores, roughly."""
        network = NETWORKS[self.network]
        slowness = _SLOWNESS.get(self.module, 0.0)
        if self.flags.get("distill"):
            slowness *= _DISTILLED
        float_epochs = self.all_flags().get("float_epochs", 15)
        if str(self.all_flags()["model"]).startswith("{"):
            float_epochs = 0
        epochs = self.epochs * slowness * len(self.outputs) + float_epochs
        return _FIXED_SECONDS + epochs * network.seconds


@dataclasses.dataclass(frozen=True)
class Places:
    """Folders of a suite.

    Attributes:
        reports: `pathlib.Path`. Folder of the committed reports.
        work: `pathlib.Path`. Folder with one folder per run.
        models: `pathlib.Path`. Folder of the pretrained networks.
        data: str or None. `--data_dir` of the recipes.
    """

    reports: pathlib.Path
    work: pathlib.Path
    models: pathlib.Path
    data: str | None = None

    def report(self, name: str) -> pathlib.Path:
        """Returns the path of a committed report."""
        return self.reports / f"{name}.json"

    def folder(self, run: Run) -> pathlib.Path:
        """Returns the folder that a run writes to."""
        return self.work / run.name


def flag_arguments(
    run: Run, places: Places | None = None, rate: str | None = None
) -> list[str]:
    """Returns the flags of a run as arguments, without its folder.

    Args:
        run: `Run`.
        places: `Places`, or None to name files without folders.
        rate: str or None. Learning rate, where other runs choose it.
    """
    folders = {"{models}/": "", "{work}/": ""}
    if places is not None:
        folders = {"{models}": str(places.models), "{work}": str(places.work)}
    values = run.all_flags()
    if run.rates:
        values["learning_rate"] = rate or "RATE"
    arguments = []
    for name, value in values.items():
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no{name}")
            continue
        text = str(value)
        for placeholder, folder in folders.items():
            text = text.replace(placeholder, folder)
        arguments.append(f"--{name}={text}")
    return arguments
