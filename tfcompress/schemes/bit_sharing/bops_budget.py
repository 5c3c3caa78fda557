"""The cost term of bit sharing, as a layer that passes its input on."""

import keras
from keras import ops

from tfcompress.layers.training_form import TrainingForm


@keras.saving.register_keras_serializable(package="tfcompress")
class BopsBudget(TrainingForm, keras.layers.Layer):
    """Adds the gradient of `strength * ln(BOPs)` to the loss while training.

    The cost term of Single-path Bit Sharing, lambda ln(BOPs), whose value is left
    out so that the loss on display stays the model's own. It stands in front of the
    model's first layer, because it also decides, before anything else runs in a step,
    whose turn it is: weight and filter gates learn in one step, activation gates in
    the next.

    Variables, not trainable: `strength`, float32 scalar.
    """

    passes_channels = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._bops = None
        self._thresholds = lambda: ()

    def build(self, input_shape):
        self.strength = self.add_weight(
            name="strength",
            initializer="zeros",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    def connect(self, bops, thresholds):
        """Tells it what to penalise.

        Args:
            bops: function without arguments that returns the expected BOPs now, a
                differentiable scalar tensor.
            thresholds: the `Threshold`s of all gates, which take turns: each is
                switched on or off at every step.
        """
        self._bops = bops
        # A closure, so that Keras does not take the layers for parts of this one.
        self._thresholds = lambda: thresholds

    def call(self, inputs, training=None):
        if training and self._bops is not None:
            for threshold in self._thresholds():
                threshold.learns.assign(1.0 - threshold.learns)
            log_bops = ops.log(self._bops())
            self.add_loss(self.strength * (log_bops - ops.stop_gradient(log_bops)))
        return inputs

    def inference_layers(self, norm, names):
        return []

    def compute_output_shape(self, input_shape):
        return input_shape
