"""Gates that close groups of a layer's filters."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.arguments import check_number
from tfcompress.graph.channels import Channels
from tfcompress.layers.training_form import TrainingForm
from tfcompress.quantizers import functional as F
from tfcompress.quantizers.gates import chosen_gates, importance_of, margins_of
from tfcompress.quantizers.threshold import Threshold
from tfcompress.types import ArrayLike, Tensor


def check_share(name: str, share: float) -> None:
    """Checks the share of a layer's groups that may be closed.

    Args:
        name: str. Name of the argument, for the error.
        share: the argument.

    Raises:
        ValueError: if it is no number in [0, 1).
    """
    check_number(name, share, "a share of the groups in [0, 1)", lambda x: 0 <= x < 1)


@keras.saving.register_keras_serializable(package="tfcompress")
class FilterGate(TrainingForm, keras.layers.Layer):
    """Layer that multiplies channels by 1 or 0, one gate per group of filters.

    It comes before the layers that sum over the channels, and after batch normalization
    and activation. There a closed channel is zero, so removing its filter changes
    nothing. A group is open while its importance, the mean |w| of its filters relative
    to the layer's times a sensitivity, exceeds the layer's threshold (Single-path Bit
    Sharing). The paper divides by max |w|; the mean keeps the gates of all layers
    around 1.

    Args:
        source: str. Name of the layer that makes the channels, "outer/inner" in nested
            models. `connect(layer)` sets the layer itself.
        filters: int. Number of channels.
        group_size: int. Filters per group; the last group may be smaller.
        max_closed: float in [0, 1). Share of the groups that may close.

    Attributes:
        group_count: int. Number of groups.
        most_closed: int. Number of groups that may close.
        is_searching: bool. Whether training steps that are compiled from now on search.

    Variables: those of a `Threshold`, and, not trainable,
        sensitivities: float32 (groups,). 1 until they are measured.
        frozen: float32 scalar. 1 while `mask` decides, see `freeze`.
        mask: float32 (filters,). 1 for each channel that stays, else 0.

    Raises:
        ValueError: if an argument is out of its range.
    """

    passes_channels = True

    def __init__(
        self,
        source: str,
        filters: int,
        group_size: int = 1,
        max_closed: float = 0.75,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        for name, value in (("filters", filters), ("group_size", group_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{name}` is a positive integer. Received: {name}={value}."
                )
        check_share("max_closed", max_closed)
        self.source = source
        self.filters = filters
        self.group_size = group_size
        self.max_closed = max_closed
        self.group_count = -(-filters // group_size)
        self.most_closed = int(max_closed * self.group_count)
        self.is_searching = True
        self._kernel: Callable[[], Tensor] | None = None

    def build(self, input_shape: tuple) -> None:
        if input_shape[-1] % self.filters:
            raise ValueError(
                f"Layer '{self.name}' gates {self.filters} channels, or as many at "
                f"each position of a flattened tensor. Received: inputs of shape "
                f"{tuple(input_shape)}."
            )
        # Gates are decided in float32 under every dtype policy.
        state: dict[str, Any] = {"trainable": False, "autocast": False}
        state["aggregation"] = "only_first_replica"
        self.threshold = Threshold(1, name="threshold")
        self.threshold.build()
        self.sensitivities = self.add_weight(
            name="sensitivities",
            shape=(self.group_count,),
            initializer="ones",
            **state,
        )
        self.frozen = self.add_weight(name="fixed", initializer="zeros", **state)
        self.mask = self.add_weight(
            name="mask", shape=(self.filters,), initializer="ones", **state
        )

    def connect(self, layer: keras.layers.Layer) -> None:
        """Sets the layer that makes the channels, a convolution or dense layer."""
        # A closure, so that Keras does not take the layer for a part of this one.
        self._kernel = lambda: _filters_last(layer)

    def importances(self) -> Tensor:
        """Returns the importances of the groups, float32 (groups,).

        Raises:
            ValueError: before `connect`.
        """
        kernel = self._filters()

        def importances(kernel, sensitivities):
            relative, gradient = self._relative(kernel)
            return (
                relative * sensitivities,
                lambda upstream: (gradient(upstream * sensitivities),),
            )

        return F.custom_gradient(
            importances, kernel, constants=F.read(self.sensitivities)
        )

    def _filters(self):
        """Kernel of the layer that makes the channels, with them in the last axis."""
        if self._kernel is None:
            raise ValueError(
                f"Layer '{self.name}' judges the filters of '{self.source}' and is "
                "expected to know it. Received: no call of `connect`. Students made "
                "by `tfcompress.compress` or `keras.models.load_model` are connected."
            )
        return self._kernel()

    def _relative(self, kernel):
        return _relative_magnitudes(kernel, self.group_sizes())

    def set_costs(self, costs: ArrayLike) -> None:
        """Sets the sensitivities from the present cost of closing each group.

        Args:
            costs: float array (groups,), see `importance_of`.
        """
        now = ops.maximum(self.importances(), 1e-6)
        importances = importance_of(ops.cast(costs, "float32"))
        self.sensitivities.assign(self.sensitivities * importances / now)

    def gates(self) -> Tensor:
        """Returns zeros and ones, float32 (filters,).

        Their gradient goes to the threshold and the filters.
        """

        def gates(kernel, raw, sensitivities, *state):
            relative, to_kernel = self._relative(kernel)
            groups, to_groups = self._groups(relative * sensitivities, raw, *state)

            def gradient(upstream):
                by_group = _sums(upstream, self.group_size, self.filters)
                to_importances, to_raw = to_groups(by_group)
                return to_kernel(to_importances * sensitivities), to_raw

            return _of_filters(groups, self.group_size, self.filters), gradient

        (raw,) = F.read(self.threshold.raw)
        return F.custom_gradient(gates, self._filters(), raw, constants=self._state())

    def _state(self):
        """The variables that gates read, and have no gradient."""
        threshold = self.threshold
        return F.read(
            self.sensitivities,
            threshold.pace,
            threshold.learns,
            self.frozen,
            self.mask if self.group_size == 1 else self.mask[:: self.group_size],
        )

    def _groups(self, importances, raw, pace, learns, frozen, mask):
        """The open groups, and their gradient to the importances and to `raw`."""
        # The bound is just below the least important group that has to stay open.
        fewest = self.group_count - self.most_closed
        bound = 0.999 * ops.min(ops.top_k(importances, fewest)[0])
        groups, gradient = chosen_gates(
            # Without the addend a threshold of 0 would close filters of zeros.
            importances + 1e-6,
            raw * pace,
            frozen,
            mask,
            bound,
        )

        def both(upstream):
            slope = gradient(upstream)
            return slope, ops.reshape(-learns * ops.sum(slope), (1,))

        return groups, both

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        is_frozen = training and not self.is_searching
        gates = ops.convert_to_tensor(self.mask) if is_frozen else self.gates()
        # After Flatten the channels repeat, once for each position.
        positions = inputs.shape[-1] // self.filters
        gates = ops.tile(gates, positions) if positions > 1 else gates
        return inputs * ops.cast(gates, inputs.dtype)

    def kept(self) -> Tensor:
        """Returns the share of the channels that are open, a scalar float32 tensor.

        Its gradient goes to the threshold alone, so a penalty on it shrinks no filters.
        """
        shares = np.float32(self.group_sizes() / self.filters)

        def kept(raw, kernel, sensitivities, *state):
            relative, _ = self._relative(kernel)
            groups, to_groups = self._groups(relative * sensitivities, raw, *state)
            return (
                ops.sum(groups * shares),
                lambda upstream: (to_groups(upstream * shares)[1],),
            )

        (raw,) = F.read(self.threshold.raw)
        constants = [self._filters(), *self._state()]
        return F.custom_gradient(kept, raw, constants=constants)

    def margins(self) -> np.ndarray:
        """Returns each group's margin, float32 (groups,); see `margins_of`."""
        margins = margins_of(self.importances(), self.threshold.value())
        return ops.convert_to_numpy(margins)

    def costs(self) -> np.ndarray:
        """Returns the present cost of closing each group, float32 (groups,)."""
        return ops.convert_to_numpy(margins_of(self.importances(), 0.0))

    def group_sizes(self) -> np.ndarray:
        """Returns the number of filters in each group, int (groups,)."""
        sizes: np.ndarray = np.full(self.group_count, self.group_size)
        sizes[-1] -= self.group_count * self.group_size - self.filters
        return sizes

    def freeze(self, open_groups: np.ndarray) -> None:
        """Freezes the open groups, which ends the search.

        Args:
            open_groups: boolean array (groups,), at least one true.
        """
        groups = ops.cast(open_groups, "float32")
        self.mask.assign(_of_filters(groups, self.group_size, self.filters))
        self.frozen.assign(1.0)

    def unfreeze(self) -> None:
        """Undoes `freeze`: the threshold decides again."""
        self.frozen.assign(0.0)

    def open_channels(self) -> np.ndarray:
        """Returns the indices of the open channels, int (channels,)."""
        return np.flatnonzero(self.gates())

    def inference_layers(
        self, norm: keras.layers.BatchNormalization | None, names: set[str]
    ) -> list[keras.layers.Layer]:
        return []

    def channel_mask(
        self, channels: Channels, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        return channels.written[self.source], ops.convert_to_numpy(self.gates()) > 0

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "source": self.source,
            "filters": self.filters,
            "group_size": self.group_size,
            "max_closed": self.max_closed,
        }


def _filters_last(layer):
    """Kernel of a layer, with its filters in the last axis."""
    (kernel,) = F.read(layer.kernel_variable)
    (axis,) = layer.channel_axes
    return kernel if axis == -1 else ops.moveaxis(kernel, axis, -1)


def _of_filters(groups, group_size, filters):
    """Values per filter, (filters,), from values per group."""
    if group_size == 1:
        return groups
    repeated = ops.broadcast_to(groups[:, None], (groups.shape[0], group_size))
    values = ops.reshape(repeated, (-1,))
    return values if values.shape[0] == filters else values[:filters]


def _sums(per_filter, group_size, filters):
    """Sums over each group of values per filter, (groups,)."""
    if group_size == 1:
        return per_filter
    missing = -filters % group_size
    padded = ops.pad(per_filter, [[0, missing]]) if missing else per_filter
    return ops.sum(ops.reshape(padded, (-1, group_size)), axis=1)


def _relative_magnitudes(kernel, group_sizes):
    """Mean |w| of each group of filters relative to that of all, and its gradient."""
    filters, size = int(group_sizes.sum()), int(group_sizes[0])
    weights = math.prod(kernel.shape) // filters * group_sizes
    by_filter = ops.sum(ops.reshape(ops.abs(kernel), (-1, filters)), axis=0)
    groups = _sums(by_filter, size, filters) * np.float32(1.0 / weights)
    mean = ops.maximum(ops.mean(groups), 1e-12)
    relative = groups / mean

    def gradient(upstream):
        to_groups = (upstream - ops.mean(upstream * relative)) / mean
        per_filter = _of_filters(to_groups * np.float32(1.0 / weights), size, filters)
        return ops.sign(kernel) * per_filter

    return relative, gradient
