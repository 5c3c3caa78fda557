"""Gates that close groups of a layer's filters."""

import keras
import numpy as np
from keras import ops

from tfcompress.layers.training_form import TrainingForm
from tfcompress.quantizers.functional import straight_through
from tfcompress.quantizers.gates import (
    Threshold,
    hard_gates,
    importance_of,
    margins_of,
)


@keras.saving.register_keras_serializable(package="tfcompress")
class FilterGate(TrainingForm, keras.layers.Layer):
    """Multiplies channels by 1 or 0, one gate per group of the filters they come from.

    Stands in front of the layers that sum over the channels, behind batch
    normalization and activation: a closed channel is exactly zero there, so its
    filter can be removed. A group stays open while its mean |w|, relative to the
    layer's, times its sensitivity, exceeds one threshold per layer (Single-path Bit
    Sharing; the paper divides by max |w|, the mean keeps all layers' gates around 1).

    Args:
        source: name of the layer whose filters it judges; "outer/inner" in nested
            models. The gate has to be told which layer that is: `connect(layer)`.
        filters: number of channels.
        group_size: filters per group; the last group may be smaller.
        max_closed: share of the groups that may close at most, in [0, 1).

    Variables: those of a `Threshold`; `sensitivities`, float32 (groups,), 1 until they
    are measured; `fixed`, 1 once the choice is made, and `mask`, float32 (filters,),
    the choice.
    """

    passes_channels = True

    def __init__(self, source, filters, group_size=1, max_closed=0.75, **kwargs):
        super().__init__(**kwargs)
        for name, value in (("filters", filters), ("group_size", group_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{name}` is a positive integer. Received: {name}={value}."
                )
        if not 0 <= max_closed < 1:
            raise ValueError(
                "`max_closed` is a share of the groups in [0, 1). Received: "
                f"max_closed={max_closed}."
            )
        self.source = source
        self.filters = filters
        self.group_size = group_size
        self.max_closed = max_closed
        self.group_count = -(-filters // group_size)
        self.most_closed = int(max_closed * self.group_count)
        self.threshold = Threshold(1, name="threshold")
        self._kernel_of = None

    def build(self, input_shape):
        if input_shape[-1] % self.filters:
            raise ValueError(
                f"Layer '{self.name}' gates {self.filters} channels, or as many at "
                f"each position of a flattened tensor. Received: inputs of shape "
                f"{tuple(input_shape)}."
            )
        # The choice is made in float32 whatever the layer computes in.
        state = {"trainable": False, "autocast": False}
        state["aggregation"] = "only_first_replica"
        self.threshold.build()
        self.sensitivities = self.add_weight(
            name="sensitivities",
            shape=(self.group_count,),
            initializer="ones",
            **state,
        )
        self.fixed = self.add_weight(name="fixed", initializer="zeros", **state)
        self.mask = self.add_weight(
            name="mask", shape=(self.filters,), initializer="ones", **state
        )

    def connect(self, layer):
        """Makes it judge the filters of `layer`, a convolution or dense layer."""
        # A closure, so that Keras does not take the layer for a part of this one.
        self._kernel_of = lambda: ops.convert_to_tensor(layer.kernel_variable)

    def importances(self):
        """What is compared with the threshold, float32 (groups,)."""
        if self._kernel_of is None:
            raise ValueError(
                f"Layer '{self.name}' judges the filters of '{self.source}' and is "
                "expected to know it. Received: no call of `connect`. Students made "
                "by `tfcompress.compress` or `keras.models.load_model` are connected."
            )
        kernel = ops.abs(self._kernel_of())
        per_filter = ops.mean(ops.reshape(kernel, (-1, self.filters)), axis=0)
        missing = self.group_count * self.group_size - self.filters
        if missing:  # the last group's mean is over the filters that it has
            last = per_filter[-(self.group_size - missing) :]
            per_filter = ops.concatenate(
                [per_filter, ops.broadcast_to(ops.mean(last), (missing,))]
            )
        per_group = ops.mean(ops.reshape(per_filter, (-1, self.group_size)), axis=1)
        relative = per_group / ops.maximum(ops.mean(per_group), 1e-12)
        return relative * ops.convert_to_tensor(self.sensitivities)

    def set_costs(self, costs):
        """Sets the sensitivities by what closing each group costs now.

        Args:
            costs: float array (groups,), see `tfcompress.quantizers.gates`.
        """
        now = ops.maximum(self.importances(), 1e-6)
        importances = importance_of(ops.cast(costs, "float32"))
        self.sensitivities.assign(self.sensitivities * importances / now)

    def gates(self):
        """Zeros and ones, float32 (filters,); gradients to threshold and filters."""
        return self._gates(self.importances())

    def _gates(self, importances):
        # Just below the least important group that has to stay. The gradient ignores
        # the bound: a threshold above it must find its way back.
        bound = 0.999 * ops.sort(ops.stop_gradient(importances))[self.most_closed]
        threshold = self.threshold.value()
        threshold = straight_through(ops.minimum(threshold, bound), threshold)
        # A filter of zeros is not closed before the search says so.
        groups = hard_gates(importances + 1e-6, threshold)
        learned = ops.repeat(groups, self.group_size)[: self.filters]
        return ops.where(self.fixed > 0, ops.convert_to_tensor(self.mask), learned)

    def call(self, inputs):
        # Flatten lays the channels of one position behind those of another.
        gates = ops.tile(self.gates(), inputs.shape[-1] // self.filters)
        return inputs * ops.cast(gates, inputs.dtype)

    def kept(self):
        """Share of the channels that are open, a scalar tensor.

        Its gradient goes to the threshold alone: a penalty on it decides on filters
        and does not shrink them.
        """
        return ops.mean(self._gates(ops.stop_gradient(self.importances())))

    def margins(self):
        """How far each group is open, see `gates.margins_of`: NumPy (groups,)."""
        margins = margins_of(self.importances(), self.threshold.value())
        return ops.convert_to_numpy(margins)

    def group_sizes(self):
        """Filters of each group, NumPy (groups,)."""
        sizes = np.full(self.group_count, self.group_size)
        sizes[-1] -= self.group_count * self.group_size - self.filters
        return sizes

    def freeze(self, open_groups):
        """Ends the search.

        Args:
            open_groups: boolean array (groups,), at least one true.
        """
        mask = ops.repeat(ops.cast(open_groups, "float32"), self.group_size)
        self.mask.assign(mask[: self.filters])
        self.fixed.assign(1.0)

    def open_channels(self):
        """Indices of the channels that are open now, a NumPy array."""
        return np.flatnonzero(self.gates())

    def inference_layers(self, norm, names):
        return []

    def channel_mask(self, channels, name):
        return channels.written[self.source], ops.convert_to_numpy(self.gates()) > 0

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "source": self.source,
            "filters": self.filters,
            "group_size": self.group_size,
            "max_closed": self.max_closed,
        }
