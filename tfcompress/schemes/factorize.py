"""The treatment of layers whose kernels are factorized."""

import dataclasses

import keras

from tfcompress import layers
from tfcompress.layers.factorized import STARTS
from tfcompress.schemes.config import config_with_decay, why_not_compressed

FACTORIZED = {
    keras.layers.Conv1D: layers.FactorizedConv1D,
    keras.layers.Conv2D: layers.FactorizedConv2D,
    keras.layers.Dense: layers.FactorizedDense,
}


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class Factorize:
    """A basis times coefficients in place of one layer's kernel.

    Args:
        start: "svd" or "identity", see `tfcompress.layers.FactorizedKernel.set_kernel`.

    Raises:
        ValueError: if it is another.
    """

    start: str = "svd"

    def __post_init__(self):
        if self.start not in STARTS:
            raise ValueError(
                f"`start` is one of {STARTS}. Received: start={self.start!r}."
            )

    @staticmethod
    def why_not(layer):
        """Why a layer cannot be factorized, or None if it can."""
        reason = why_not_compressed(layer, FACTORIZED)
        if reason is None and getattr(layer, "groups", 1) > 1:
            return f"has {layer.groups} groups"
        return reason

    def __str__(self):
        return f"basis x coefficients, {self.start} start"

    def student_layer(self, layer, weight_decay):
        """The `Factorized*` layer, not built, that takes the place of `layer`."""
        config = config_with_decay(layer, weight_decay)
        if self.start == "identity":
            config["kernel_rank"] = config.get("filters") or config["units"]
        return FACTORIZED[type(layer)].from_config(config)

    def copy_weights(self, old, new):
        """Gives a built student layer the weights of the layer it replaces."""
        new.set_kernel(keras.ops.convert_to_numpy(old.kernel), self.start)
        if old.use_bias:
            new.bias.assign(old.bias)

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)
