"""Baseline of bit sharing: the same bits for every layer."""

from collections.abc import Mapping
from typing import Any

import keras

from tfcompress.core.config import KeepFloat, QuantizeConfig, learned_range_config
from tfcompress.core.scheme import Place, Scheme
from tfcompress.core.student import Student
from tfcompress.core.tensor_ranges import BITS
from tfcompress.core.training.calibration import CalibrateActivations, calibrate_weights
from tfcompress.core.training.recalibration import Recalibration


@keras.saving.register_keras_serializable(package="tfcompress.schemes")
class Uniform(Scheme):
    """Scheme with the same weight bits and the same activation bits in every layer.

    It uses the quantizers of `BitSharing`, so the two compare. The first and the last
    layers have 8-bit weights and, unless activations are float, 8-bit activations.

    Args:
        weight_bits: int, 2 to 8. Bits of a weight.
        activation_bits: int, 2 to 8, or None. Bits of an activation. With 8 all tensors
            that an int8 file stores have learned ranges; with fewer, the inputs of
            layers. None leaves activations float in all layers.
        weight_decay, overrides: see `Scheme`.

    Raises:
        ValueError: if a number of bits is out of range.

    Example:

    >>> student = tfc.compress(model, tfc.Uniform(weight_bits=4, activation_bits=4))
    """

    def __init__(
        self,
        weight_bits: int = 4,
        activation_bits: int | None = 4,
        weight_decay: float = 1e-4,
        overrides: Mapping[str, KeepFloat | QuantizeConfig] | None = None,
    ) -> None:
        super().__init__(overrides, weight_decay)
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        learned_range_config(weight_bits, activation_bits, False)  # checks them

    def config_for(self, layer: keras.layers.Layer, place: Place) -> QuantizeConfig:
        if place.is_first or place.is_last:
            inputs = None if self.activation_bits is None else 8
            return learned_range_config(8, inputs, place.signed_input)
        return learned_range_config(
            self.weight_bits, self.activation_bits, place.signed_input
        )

    def learns_all_ranges(self) -> bool:
        return self.activation_bits == BITS

    def prepare(self, student: Student) -> None:
        calibrate_weights(student)

    def callbacks(
        self, student: Student, recalibrate: Recalibration
    ) -> list[keras.callbacks.Callback]:
        return [CalibrateActivations(recalibrate)]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
        }
