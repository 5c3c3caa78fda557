"""The same bits for every layer: the baseline of all bit-choosing schemes."""

import keras

from tfcompress.core.config import QuantizeConfig
from tfcompress.core.scheme import Scheme
from tfcompress.core.training.calibration import CalibrateActivations, calibrate_weights
from tfcompress.quantizers import BitSharing, BitSharingActivation


@keras.saving.register_keras_serializable(package="tfcompress.schemes")
class Uniform(Scheme):
    """The same bits for the weights, and for the activations, of every layer.

    With the quantizers of `BitSharing`, so that the two compare. The first and the
    last layers have 8 and 8 bits.

    Args:
        weight_bits: 2 to 8.
        activation_bits: 2 to 8.
        weight_decay, overrides: see `Scheme`.

    Example:

    >>> student = tfc.compress(model, tfc.Uniform(weight_bits=4, activation_bits=4))
    """

    def __init__(
        self, weight_bits=4, activation_bits=4, weight_decay=1e-4, overrides=None
    ):
        super().__init__(overrides, weight_decay)
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        quantize_config(weight_bits, activation_bits, False)  # checks them

    def config_for(self, layer, place):
        if place.is_first or place.is_last:
            return quantize_config(8, 8, place.signed_input)
        return quantize_config(
            self.weight_bits, self.activation_bits, place.signed_input
        )

    def prepare(self, student):
        calibrate_weights(student)

    def callbacks(self, student, recalibrate):
        return [CalibrateActivations(recalibrate.batches)]

    def get_config(self):
        return {
            **super().get_config(),
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
        }


def quantize_config(weight_bits, activation_bits, signed, grid="symmetric"):
    """`QuantizeConfig` with learned ranges; bits are integers, or candidates."""

    def candidates(bits):
        return bits if isinstance(bits, (list, tuple)) else (bits,)

    return QuantizeConfig(
        BitSharing(candidates(weight_bits), grid),
        BitSharingActivation(candidates(activation_bits), signed),
    )
