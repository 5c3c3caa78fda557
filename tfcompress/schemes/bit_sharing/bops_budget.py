"""Cost term of bit sharing, as a layer that returns its input."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from tfcompress.layers.training_form import TrainingForm
from tfcompress.quantizers.threshold import Threshold
from tfcompress.types import Tensor


@keras.saving.register_keras_serializable(package="tfcompress")
class BopsBudget(TrainingForm, keras.layers.Layer):
    """Layer that adds the gradient of `strength * ln(BOPs)` to the loss in training.

    This is the cost term of Single-path Bit Sharing, lambda ln(BOPs), without its
    value, so that the displayed loss is the model's own. The layer comes before the
    model's first layer, because it runs first in each step: there it switches between
    the gates of weights and filters and the gates of activations, which learn in turns.

    Attributes:
        is_searching: bool. Whether training steps that are compiled from now on search.

    Variables (not trainable):
        strength: float32 scalar. Lambda.
    """

    passes_channels = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.is_searching = True
        self._bops: Callable[[], Tensor] | None = None
        self._thresholds: Callable[[], Sequence[Threshold]] = lambda: ()

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.strength = self.add_weight(
            name="strength",
            initializer="zeros",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    def connect(
        self, bops: Callable[[], Tensor], thresholds: Sequence[Threshold]
    ) -> None:
        """Sets the cost and the gates that take turns.

        Args:
            bops: function that returns the expected BOPs, a differentiable scalar
                tensor.
            thresholds: the `Threshold`s of all gates. Every training step switches
                each on or off.
        """
        self._bops = bops
        # A closure, so that Keras does not take the layers for parts of this one.
        self._thresholds = lambda: thresholds

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if training and self.is_searching and self._bops is not None:
            for threshold in self._thresholds():
                threshold.learns.assign(1.0 - threshold.learns)
            log_bops = ops.log(self._bops())
            self.add_loss(self.strength * (log_bops - ops.stop_gradient(log_bops)))
        return inputs

    def inference_layers(
        self, norm: keras.layers.BatchNormalization | None, names: set[str]
    ) -> list[keras.layers.Layer]:
        return []

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return input_shape
