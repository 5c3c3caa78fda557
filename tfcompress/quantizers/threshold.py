"""Learned thresholds of gates."""

from typing import Any

import keras
from keras import ops

from tfcompress.quantizers import functional as F
from tfcompress.types import Tensor

# Upper bound of thresholds. No gate is open there, since importances are below it.
MAX_THRESHOLD = 1.5


class Threshold(keras.layers.Layer):
    """Vector of learned thresholds in [0, `MAX_THRESHOLD`].

    The optimizer trains `raw`; the threshold is `pace * raw`, with the gradient of
    `raw` itself. A search sets `pace` to a constant over the sum of its learning
    rates. Thresholds then move as far in a short search as in a long one, with SGD as
    with Adam.

    Args:
        size: int. Number of thresholds.

    Variables:
        raw: float32 (size,), trainable.
        pace: float32 scalar. Factor from `raw` to the thresholds.
        learns: float32 scalar. 1 where the thresholds have a gradient, else 0.
    """

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.size = size

    def build(self) -> None:
        self.largest_raw = MAX_THRESHOLD
        # No autocast: layers that compute in 16 bits read these in float32.
        state = {"initializer": "ones", "trainable": False, "autocast": False}
        state["aggregation"] = "only_first_replica"
        self.pace = self.add_weight(name="pace", **state)
        self.learns = self.add_weight(name="learns", **state)
        self.raw = self.add_weight(
            name="threshold",
            shape=(self.size,),
            initializer="zeros",
            autocast=False,
            constraint=_Bounds(self),
        )

    def value(self) -> Tensor:
        """Returns the thresholds, float32 (size,), with a gradient if they learn."""
        return threshold_value(*F.read(self.raw, self.pace, self.learns))

    def set_pace(self, pace: float) -> None:
        """Changes `pace` and keeps the thresholds.

        A training step that is already compiled has to be compiled again.
        """
        value = ops.convert_to_numpy(self.raw) * float(ops.convert_to_numpy(self.pace))
        self.pace.assign(pace)
        self.raw.assign(value / pace)
        self.follow_pace()

    def follow_pace(self) -> None:
        """Bounds the thresholds for the present `pace`, which may have been restored.

        A training step that is already compiled has to be compiled again.
        """
        self.largest_raw = MAX_THRESHOLD / float(ops.convert_to_numpy(self.pace))

    def get_build_config(self) -> None:
        return None  # The layer that owns it builds it.


class _Bounds(keras.constraints.Constraint):
    """Bounds of a `Threshold`, without which it drifts away and is slow to return.

    The upper bound is a Python number: on some backends an optimizer's step can read no
    other variable.
    """

    def __init__(self, threshold: Threshold) -> None:
        self.threshold = threshold

    def __call__(self, raw: Tensor) -> Tensor:
        return ops.clip(raw, 0.0, self.threshold.largest_raw)


def threshold_value(raw: Tensor, pace: Tensor, learns: Tensor) -> Tensor:
    """Returns `pace * raw`, with the gradient of `raw` itself times `learns`.

    Args:
        raw, pace, learns: float32 tensors, the variables of one `Threshold` or those of
            several, stacked.
    """

    def forward(raw, pace, learns):
        return raw * pace, lambda upstream: (upstream * learns,)

    return F.custom_gradient(forward, raw, constants=[pace, learns])
