"""Ternary weights by L2 normalization and pruning."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.arguments import check_number
from tfcompress.quantizers import functional as F
from tfcompress.quantizers.quantizer import Quantizer
from tfcompress.types import ArrayLike, Tensor


@keras.saving.register_keras_serializable(package="tfcompress")
class Ternary(Quantizer):
    """Quantizer of weights to {-a, 0, a} with one scale a per output channel.

    Each filter is normalized to the unit sphere and pruned by magnitude; the weights
    that stay keep only their sign (pruned ternary quantization, arXiv 2107.10998,
    reconstructed from the abstracts, as the full text is not public). With `sparsity`
    the threshold is that quantile of the kernel's normalized magnitudes. Without it,
    each filter's threshold is `functional.mean_threshold`, which nearly has the largest
    cosine between float and ternary weights. `functional.ternarize` has the gradient.

    Args:
        sparsity: float in (0, 1), or None. Share of zeros in the kernel.
        discrepancy: float, 0 to 1000. Weight of the loss `mean(1 - cos)`, which draws
            filters towards their ternary version.

    Attributes:
        holds_threshold: bool. Whether the variable `threshold` is the quantile of
            `sparsity`, and `refresh` sets it. By default each call recomputes the
            quantile by a sort.

    Variables (not trainable):
        current_sparsity: float32 scalar. A schedule may ramp it up to `sparsity`.
        frozen: float32 scalar. 1 while `mask` decides, see `freeze`.
        mask: bool, of the kernel's shape. Keep mask: true where a weight stays.
        threshold: float32, |w| / ||w|| per output channel, broadcastable to the kernel;
            see `holds_threshold`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> layer = QuantConv2D(64, 3, kernel_quantizer=Ternary(sparsity=0.9))
    """

    bits = 2

    def __init__(
        self, sparsity: float | None = None, discrepancy: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_sparsity(sparsity)
        check_number(
            "discrepancy",
            discrepancy,
            "the weight of a loss term, a number from 0 to 1000",
            lambda x: 0 <= x <= 1000,
        )
        self.sparsity = sparsity
        self.discrepancy = discrepancy
        self.holds_threshold = False

    def describe(self, noun: str) -> str:
        return f"ternary {noun}"

    def build(self, kernel_shape: tuple[int, ...]) -> None:
        state = {"trainable": False, "aggregation": "only_first_replica"}
        self.current_sparsity = self.add_weight(
            name="current_sparsity",
            initializer=keras.initializers.Constant(self.sparsity or 0.0),
            **state,
        )
        self.frozen = self.add_weight(name="frozen", initializer="zeros", **state)
        self.mask = self.add_weight(
            name="mask", shape=kernel_shape, dtype="bool", initializer="zeros", **state
        )
        shape = [1] * len(kernel_shape)
        for axis in self.channel_axes:
            shape[axis] = kernel_shape[axis]
        self.threshold = self.add_weight(
            name="threshold", shape=shape, initializer="zeros", **state
        )

    def _quantile(self, kernel):
        kernel, sparsity = F.on_host(kernel), F.on_host(self.current_sparsity)
        return F.sparsity_threshold(kernel, sparsity, self.channel_axes)

    def _codes(self, kernel: Tensor) -> Tensor:
        if self.sparsity is None:
            threshold = F.mean_threshold(kernel, self.channel_axes)
        elif self.holds_threshold:
            threshold = self.threshold * F.l2_norm(kernel, self.channel_axes)
            # A filter whose weights have all become smaller is not emptied.
            threshold = F.at_most_largest(threshold, kernel, self.channel_axes)
        else:
            threshold = self._quantile(kernel)
        keep = ops.abs(kernel) >= threshold
        keep = ops.where(self.frozen > 0, ops.convert_to_tensor(self.mask), keep)
        return F.ternary_codes(kernel, keep)

    def codes_and_scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        codes = self._codes(x)
        scale = F.ternary_scale(x, codes, self.channel_axes)
        return codes, ops.where(scale > 0, scale, ops.ones_like(scale))

    def call(self, kernel: Tensor, training: bool | None = None) -> Tensor:
        codes, scale = self.codes_and_scale(kernel)
        if training and self.discrepancy:
            cosines = F.cosine(kernel, codes, self.channel_axes)
            self.add_loss(self.discrepancy * ops.mean(1.0 - cosines))
        return F.ternarize(kernel, codes, scale, self.channel_axes)

    def refresh(self, kernel: ArrayLike) -> None:
        """Sets `threshold` to the quantile of a kernel, if there is a `sparsity`."""
        if self.sparsity is not None:
            kernel = ops.convert_to_tensor(kernel, "float32")
            norm = F.l2_norm(kernel, self.channel_axes)
            self.threshold.assign(self._quantile(kernel) / norm)

    def freeze(self, kernel: ArrayLike) -> None:
        """Freezes the keep mask at the weights kept now; signs may still change.

        At the end of training this prevents weights from flickering between zero
        and non-zero. Codes no longer depend on the order in which a device sums.
        """
        self.refresh(kernel)
        self.mask.assign(self._codes(ops.convert_to_tensor(kernel, "float32")) != 0)
        self.frozen.assign(1.0)

    def unfreeze(self) -> None:
        """Undoes `freeze`: a threshold decides again."""
        self.frozen.assign(0.0)

    def natural_sparsity(self, kernel: ArrayLike) -> float:
        """Returns the share of zeros that a kernel would have without `sparsity`."""
        kernel = ops.convert_to_tensor(kernel, "float32")
        zero = ops.abs(kernel) < F.mean_threshold(kernel, self.channel_axes)
        return float(ops.mean(ops.cast(zero, "float32")))

    def unfinished(self) -> str | None:
        current = float(ops.convert_to_numpy(self.current_sparsity))
        if self.sparsity is None or abs(current - self.sparsity) < 1e-6:
            return None
        return (
            f"its sparsity is {current:.3f} and has not reached {self.sparsity}. Train "
            "with `fit` to the end of the schedule."
        )

    def load_own_variables(self, store: Any) -> None:
        values = {name: store[name] for name in store.keys()}  # noqa: SIM118
        threshold = str(len(self.variables) - 1)
        is_missing = threshold not in values  # from a file of an earlier version
        if is_missing:
            values[threshold] = ops.convert_to_numpy(self.threshold)
        super().load_own_variables(values)
        if is_missing and self.latent_kernel is not None:
            kernel = self.latent_kernel()
            self.refresh(kernel)
            if self.sparsity is None and not ops.convert_to_numpy(self.frozen):
                self.mask.assign(_kept_by_best_cosine(kernel, self.channel_axes))
                self.frozen.assign(1.0)  # until a training goes on

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "sparsity": self.sparsity,
            "discrepancy": self.discrepancy,
        }


def _kept_by_best_cosine(kernel, channel_axes):
    """Weights that version 0.1.0 kept without a sparsity.

    Of each filter u on the unit sphere these are the k largest magnitudes with the
    largest cosine `sum_{i<=k} |u|_(i) / sqrt(k)`.
    """
    magnitudes = np.abs(ops.convert_to_numpy(kernel))
    axes = F.filter_axes(magnitudes, channel_axes)
    filters = magnitudes.reshape(math.prod(magnitudes.shape[axis] for axis in axes), -1)
    descending = -np.sort(-filters, axis=0)
    counts = np.arange(1, len(filters) + 1)[:, None]
    best = np.argmax(np.cumsum(descending, axis=0) / np.sqrt(counts), axis=0)
    least = np.take_along_axis(descending, best[None], axis=0)
    return (filters >= least).reshape(magnitudes.shape)


def check_sparsity(sparsity: float | None) -> None:
    """Raises ValueError unless `sparsity` is None or a number in (0, 1)."""
    if sparsity is not None:
        check_number(
            "sparsity",
            sparsity,
            "the share of zero weights in (0, 1), or None for that of 0.7 mean "
            "magnitudes",
            lambda x: 0 < x < 1,
        )
