"""Interface of layers that `tfcompress.finalize` replaces by an inference form."""

from typing import Any

import keras
import numpy as np

from tfcompress.compat import keras_private


class TrainingForm:
    """Mixin of a training layer that has an inference form.

    Attributes:
        folds_batch_norm: bool. Whether the BatchNormalization after the layer is folded
            into the inference form.
        passes_channels: bool. Whether output channel i depends on input channel i only.
        may_become_constant: bool. Whether the training may leave zeros alone in the
            kernel, so that layers whose outputs are constant are then removed.
        training_run: object with a method `check()`, or None. Calls in training call
            it before anything else; it raises an error if they are not expected.
    """

    folds_batch_norm = False
    passes_channels = False
    may_become_constant = False
    training_run: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.training_run is not None and keras_private.is_training(kwargs):
            self.training_run.check()
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def check_inference_form(self) -> None:
        """Raises ValueError if the layer has no inference form."""

    def unfinished(self) -> list[str]:
        """Returns a sentence per step of the training that is missing."""
        return []

    def inference_layers(
        self, norm: keras.layers.BatchNormalization | None, names: set[str]
    ) -> list[keras.layers.Layer]:
        """Returns the layers of the inference form, not built.

        Args:
            norm: BatchNormalization to fold in, or None.
            names: names that are taken in the model.

        Returns:
            List of layers to call one after the other. An empty list stands for the
            identity.
        """
        raise NotImplementedError

    def copy_to_inference(
        self,
        layers: list[keras.layers.Layer],
        norm: keras.layers.BatchNormalization | None,
    ) -> None:
        """Sets the weights of the built inference layers.

        Args:
            layers: list that `inference_layers` returned.
            norm: argument that `inference_layers` received.
        """

    def on_learned_levels(self) -> None:
        """Tells a layer that is not built that its student learns all ranges.

        The ranges are those of `tensor_ranges.TensorRanges`.
        """

    def biased_product(
        self, step: float | None
    ) -> tuple[np.ndarray, np.ndarray, float] | None:
        """Returns the product that the int8 operator of the layer adds its bias to.

        Args:
            step: float or None. Distance of two levels of the layer's input; None if
                that is not on levels.

        Returns:
            `(codes, scale, step)`: the kernel as `quantizers.Quantizer.encode` returns
            it, and the distance of two levels of the operator's input. None if the
            layer does not multiply levels by codes.
        """
        return None

    def inference_bias(self) -> np.ndarray | None:
        """Returns the bias of the inference form, (output channels,), or None.

        Batch normalization after the layer is not folded in.
        """
        return None

    def channel_mask(
        self, channels: Any, name: str
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the keep mask of the channels that the layer reads.

        Args:
            channels: `tfcompress.graph.Channels` of the model in inference form.
            name: name of the first of the `inference_layers` in that model.

        Returns:
            `(groups, is_open)`, or None if the layer closes no channels. `groups` is an
            int array (n,) of channel dependency groups in `channels`. `is_open` is a
            boolean array (n,): whether the layer needs the channels of the group.
        """
        return None
