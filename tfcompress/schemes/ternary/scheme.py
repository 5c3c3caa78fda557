"""Scheme of pruned ternary quantization."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tfcompress.core.budget import SLACK
from tfcompress.core.config import KeepFloat, QuantizeConfig, learned_range_inputs
from tfcompress.core.scheme import Place, Scheme
from tfcompress.core.student import Student
from tfcompress.core.tensor_ranges import BITS
from tfcompress.core.training.calibration import CalibrateActivations
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.layers.kernel import kernel_of
from tfcompress.layers.registry import forms_of
from tfcompress.quantizers import Ternary, Uniform
from tfcompress.quantizers.ternary import check_sparsity
from tfcompress.schemes.ternary.schedule import (
    LowRateFinish,
    TernarySchedule,
    ternary_layers,
)

if TYPE_CHECKING:
    from tfcompress.core.plan import Plan


@keras.saving.register_keras_serializable(package="tfcompress.schemes")
class PrunedTernary(Scheme):
    """Scheme of ternary weights by L2 normalization and pruning (arXiv 2107.10998).

    Each convolution and dense kernel becomes {-a, 0, a}, with one scale a per output
    channel. In the first half of each `fit` the sparsity rises along a cubic ramp to
    `sparsity`. In the last fifth the learning rate is annealed to a hundredth, unless
    the optimizer has a schedule. Zeros are frozen for the last steps.

    The logs of each epoch have "sparsity", the share of zeros in ternary kernels;
    "budget_ratio", the weights that are not zero relative to those that `sparsity`
    leaves; and "phase", 1 once the ramp has ended, else 0.

    Args:
        sparsity: float in (0, 1), or None. Share of zeros in each ternary kernel: the
            size knob. None sets to zero what is below 0.7 of the mean magnitude of its
            filter, about 0.43.
        first_last: str. Treatment of the first and the last layers: "8bit" for uniform
            codes, "ternary" as in all others, or "float".
        weight_decay: float. L2 penalty on the kernels, see `Scheme`. With normalized
            weights it sets the pace at which directions change.
        discrepancy: float. Weight of the loss `mean(1 - cos)` between float and ternary
            filters, summed over layers.
        overrides: dict. Treatment by layer name, see `Scheme`.
        activation_bits: int, 2 to 8, or None. Bits of the input of each compressed
            layer, with learned ranges. None leaves activations float. With 8 all
            tensors that an int8 file stores have learned ranges, and that file computes
            what was trained.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> student = tfc.compress(model, tfc.PrunedTernary(sparsity=0.9))
    """

    def __init__(
        self,
        sparsity: float | None = None,
        first_last: str = "8bit",
        weight_decay: float = 1e-4,
        discrepancy: float = 0.0,
        overrides: Mapping[str, KeepFloat | QuantizeConfig] | None = None,
        activation_bits: int | None = None,
    ) -> None:
        super().__init__(overrides, weight_decay)
        check_sparsity(sparsity)
        Ternary(sparsity, discrepancy)  # checks them, as the next line does
        learned_range_inputs(activation_bits, False)
        if first_last not in ("8bit", "ternary", "float"):
            raise ValueError(
                "`first_last` is '8bit', 'ternary' or 'float'. Received: "
                f"first_last={first_last!r}."
            )
        self.sparsity = sparsity
        self.first_last = first_last
        self.discrepancy = discrepancy
        self.activation_bits = activation_bits

    def config_for(
        self, layer: keras.layers.Layer, place: Place
    ) -> KeepFloat | QuantizeConfig:
        inputs = learned_range_inputs(self.activation_bits, place.signed_input)
        if self.first_last == "ternary" or not (place.is_first or place.is_last):
            return QuantizeConfig(Ternary(self.sparsity, self.discrepancy), inputs)
        if self.first_last == "8bit":
            return QuantizeConfig(Uniform(8), inputs)
        return KeepFloat("first or last layer, first_last='float'")

    def learns_all_ranges(self) -> bool:
        return self.activation_bits == BITS

    def connect(self, student: Student) -> None:
        for layer in ternary_layers(student):
            layer.kernel_quantizer.holds_threshold = True

    def prepare(self, student: Student) -> None:
        """Starts each sparsity ramp at the share of zeros without `sparsity`."""
        for layer in ternary_layers(student):
            quantizer = layer.kernel_quantizer
            if quantizer.sparsity is not None:
                natural = quantizer.natural_sparsity(layer.latent_kernel)
                quantizer.current_sparsity.assign(natural)
            quantizer.refresh(layer.latent_kernel)

    def callbacks(
        self, student: Student, recalibrate: Recalibration
    ) -> list[keras.callbacks.Callback]:
        finish = LowRateFinish()
        return [
            CalibrateActivations(recalibrate),
            TernarySchedule(recalibrate),
            finish,
            finish.scaling,
        ]

    def measure(self, student: Student) -> dict[str, float]:
        layers = ternary_layers(student)
        ramping = any(layer.kernel_quantizer.unfinished() for layer in layers)
        measured = {"phase": 0.0 if ramping else 1.0}
        if layers:
            sizes, counts, budgets = np.transpose([_weights(x) for x in layers])
            has_budget = np.isfinite(budgets)
            measured["sparsity"] = float(1.0 - counts.sum() / sizes.sum())
            if has_budget.any():
                total = budgets[has_budget].sum()
                measured["budget_ratio"] = float(counts[has_budget].sum() / total)
        return measured

    def unmet(self, student: Student) -> str | None:
        reasons = []
        for layer in ternary_layers(student):
            quantizer, kernel = layer.kernel_quantizer, layer.latent_kernel
            size, count, budget = _weights(layer)
            # The largest weight of each filter always stays.
            filters = math.prod(kernel.shape[axis] for axis in layer.channel_axes)
            unfinished, excess = quantizer.unfinished(), count - budget
            if unfinished or excess > min(filters, SLACK * size):
                reason = (
                    f"'{layer.name}' has a sparsity of {1.0 - count / size:.3f} in "
                    f"place of {quantizer.sparsity}"
                )
                if not unfinished and excess <= filters:
                    reason += f" (each filter keeps one of {size // filters} weights)"
                reasons.append(reason)
        return ", ".join(reasons) or None

    def notes(self, model: keras.Model, plan: "Plan") -> dict[str, str]:
        notes = {}
        for row in plan.treated():
            quantizer = row.config.kernel_quantizer
            if isinstance(quantizer, Ternary) and quantizer.sparsity is not None:
                shape = kernel_of(row.layer).shape
                axes = forms_of(row.layer).channel_axes
                filters = math.prod(shape[axis] for axis in axes)
                most = 1.0 - filters / math.prod(shape)
                if most < quantizer.sparsity:
                    notes[row.name] = (
                        f"at most {most:.3f} zeros, as each filter keeps a weight"
                    )
        return notes

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "sparsity": self.sparsity,
            "first_last": self.first_last,
            "discrepancy": self.discrepancy,
            "activation_bits": self.activation_bits,
        }


def _weights(layer):
    """Weights of a ternary layer: all, those not zero, and the budget of those."""
    codes, _ = layer.kernel_quantizer.encode(layer.latent_kernel)
    sparsity = layer.kernel_quantizer.sparsity
    budget = np.inf
    if sparsity is not None:  # whole weights, as `sparsity_threshold` rounds them
        budget = codes.size - np.round(sparsity * codes.size)
    return codes.size, np.count_nonzero(codes), budget
