"""Treatment of layers whose kernels are factorized."""

import dataclasses
from typing import Any

import keras

from tfcompress.core.config import config_with_decay, why_not_compressed
from tfcompress.graph.batch_norm import foldable
from tfcompress.graph.graph import Graph
from tfcompress.layers.factorized import STARTS
from tfcompress.layers.kernel import value_of
from tfcompress.layers.registry import FORMS, forms_of

NORM_PLACES = ("after", "between")


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class Factorize:
    """Treatment that makes a layer's kernel a basis times coefficients.

    Args:
        start: str. "svd" or "identity", see
            `tfcompress.layers.FactorizedKernel.set_kernel`. The decomposition takes
            place when `fit` begins; until then one factor is an identity.
        batch_norm: str. Place of a batch normalization after the layer. "after": after
            the coefficients, as it is. "between": between basis and coefficients, see
            `tfcompress.layers.FactorizedNorm`; only an identity start is then exact.

    Raises:
        ValueError: if a value is unknown, or "between" comes with another start.
    """

    start: str = "svd"
    batch_norm: str = "after"

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(
                f"`start` is one of {STARTS}. Received: start={self.start!r}."
            )
        if self.batch_norm not in NORM_PLACES:
            raise ValueError(
                f"`batch_norm` is one of {NORM_PLACES}. Received: "
                f"batch_norm={self.batch_norm!r}."
            )
        if self.batch_norm == "between" and self.start != "identity":
            raise ValueError(
                "`batch_norm='between'` is expected with start='identity'. Received: "
                f"start={self.start!r}."
            )

    @staticmethod
    def why_not(layer: Any) -> str | None:
        kinds = [forms.plain for forms in FORMS if forms.factorized]
        reason = why_not_compressed(layer, kinds)
        if reason is None and getattr(layer, "groups", 1) > 1:
            return f"has {layer.groups} groups"
        return reason

    def __str__(self) -> str:
        between = ", batch normalization between" * (self.batch_norm == "between")
        return f"basis x coefficients, {self.start} start{between}"

    def norm_of(
        self, graph: Graph, layer: keras.layers.Layer
    ) -> keras.layers.BatchNormalization | None:
        norm = foldable(graph, layer) if self.batch_norm == "between" else None
        return norm if norm is not None and norm.trainable else None

    def student_layer(
        self,
        layer: keras.layers.Layer,
        weight_decay: float,
        norm: keras.layers.BatchNormalization | None,
    ) -> keras.layers.Layer:
        config = config_with_decay(layer, weight_decay)
        if self.start == "identity":
            config["kernel_rank"] = config.get("filters") or config["units"]
        forms = forms_of(layer)
        if norm is None:
            return forms.factorized.from_config(config)
        config.update(use_bias=True, momentum=norm.momentum, epsilon=norm.epsilon)
        return forms.factorized_norm.from_config(config)

    def copy_weights(
        self,
        old: keras.layers.Layer,
        new: keras.layers.Layer,
        norm: keras.layers.BatchNormalization | None,
    ) -> None:
        kernel = keras.ops.convert_to_numpy(old.kernel)
        if self.start == "svd":  # `fit` begins with a decomposition of its own
            new.set_product(kernel)
        else:
            new.set_kernel(kernel, self.start)
        if norm is not None:
            new.absorb(norm, old.bias if old.use_bias else None)
        elif old.use_bias:
            new.bias.assign(value_of(old.bias))

    def get_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Factorize":
        return cls(**renamed(config))


def renamed(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a saved configuration with today's names of values.

    Version 0.1.0 saved `batch_norm="after"` under another name.
    """
    if config.get("batch_norm") == "behind":
        return {**config, "batch_norm": "after"}
    return config
