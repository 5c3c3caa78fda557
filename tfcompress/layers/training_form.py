"""The interface by which `tfcompress.finalize` replaces layers in training."""

from typing import Any

import keras
import numpy as np


class TrainingForm:
    """Mixin of a layer that exists in training only, and knows its inference form.

    Attributes:
        folds_batch_norm: bool. Whether the inference form takes in the
            BatchNormalization after the layer.
        passes_channels: bool. Whether the layer returns the channels that it reads, in
            their places.
    """

    folds_batch_norm = False
    passes_channels = False

    def check_inference_form(self) -> None:
        """Raises ValueError if the layer has no inference form."""

    def unfinished(self) -> list[str]:
        """Sentences about the steps of the training that are missing."""
        return []

    def inference_layers(
        self, norm: keras.layers.BatchNormalization | None, names: set[str]
    ) -> list[keras.layers.Layer]:
        """The layers that compute the same in inference, not built.

        Args:
            norm: the BatchNormalization to take in, or None.
            names: names that the model has given away.

        Returns:
            List of layers to call one after the other; an empty one if the layer's
            input passes through.
        """
        raise NotImplementedError

    def copy_to_inference(
        self,
        layers: list[keras.layers.Layer],
        norm: keras.layers.BatchNormalization | None,
    ) -> None:
        """Gives the built `inference_layers` their weights.

        Args:
            layers: list that `inference_layers` returned.
            norm: as `inference_layers` received it.
        """

    def channel_mask(
        self, channels: Any, name: str
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The channels that the training has closed.

        Args:
            channels: `tfcompress.graph.Channels` of the model in inference form.
            name: of the first of the `inference_layers` in it.

        Returns:
            `(groups, is_open)`: int array (n,), dependency groups of `channels`, and
            boolean array (n,), whether the layer needs each; None if it closes none.
        """
        return None
