"""Quantizers whose bit-widths share one kernel and are chosen by learned gates."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.quantizers import functional as F
from tfcompress.quantizers import nested
from tfcompress.quantizers.activation import ActivationQuantizer, gradient_scale
from tfcompress.quantizers.gates import BitGates
from tfcompress.quantizers.quantizer import Quantizer
from tfcompress.quantizers.ranges import best_clip, best_clips, some_values
from tfcompress.types import ArrayLike, Tensor

GRIDS = ("symmetric", "paper")
# Gates of activations learn from every n-th sample of a batch. Replicas that share a
# batch take the same samples as one device would, if the share of each is a multiple.
SAMPLE_STRIDE = 8
# Gates of weights learn from every n-th filter, of about this many weights in all.
GATE_WEIGHTS = 2**16


class GatedBits(Quantizer):
    """Base class of quantizers whose bits are chosen by `gates`, a `BitGates`.

    Args:
        bits: ints. Candidates, some of 2 to 8.
    """

    def __init__(self, bits: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._candidates = check_candidates(bits)
        self.gates = BitGates(self._candidates, name="gates")

    @property
    def candidates(self) -> tuple[int, ...]:
        return self._candidates

    @property
    def bits(self) -> int:
        return self.gates.bits()

    def unfinished(self) -> str | None:
        if ops.convert_to_numpy(self.gates.frozen_bits) > 0:
            return None
        return (
            "the search for its bits has not ended; its gates now choose "
            f"{self.bits}. Train with `fit` to the end of the search."
        )

    def _calibrate(self, values: np.ndarray, signed: bool) -> None:
        """Sets `clip` to the least squared error, and the gates' `errors` to match.

        Args:
            values: float array, in the units of the clip.
            signed: bool. Whether the range is centered on zero.
        """
        values = some_values(values)
        frozen = int(ops.convert_to_numpy(self.gates.frozen_bits))
        # During a search one range serves all candidates: that of the middle one.
        bits = frozen or self.candidates[len(self.candidates) // 2]
        self.clip.assign(best_clip(values, bits, signed))
        if self.gates.threshold is not None:
            tensor = ops.convert_to_tensor(values)
            clip = ops.convert_to_tensor(self.clip)
            errors = nested.mean_errors(tensor, clip, self.candidates, signed)
            self.gates.errors.assign(errors)

    def _share(
        self, x, rule, scale, signed, factor=None, sample=None, values=None, int8=False
    ):
        """`nested.share_bits` in the present range and bits, with gradients to both.

        Args:
            rule: the `rule` of the gates.
            scale: factor on the gradient of the range, see `learned_clip`.
            x, signed, factor, sample, values, int8: see `nested.share_bits`.
        """
        bits = self.candidates

        def quantize(x, raw_clip, *rest):
            thresholds, rest = rest[: len(rule.values)], rest[len(rule.values) :]
            scale, factor, values, *state = rest
            clip, to_raw = _clip(raw_clip, scale)
            gates, to_thresholds = rule.function(*thresholds, *state)
            value, to_parts = nested.share_bits(
                x, clip, gates, bits, signed, factor, sample, values, int8
            )

            def gradient(upstream):
                to_x, to_clip, to_gates = to_parts(upstream)
                return (to_x, to_raw(to_clip), *to_thresholds(to_gates))

            return value, gradient

        constants = [scale, factor, values, *rule.constants]
        arguments = [x, *F.read(self.clip), *rule.values]
        return F.custom_gradient(quantize, *arguments, constants=constants)

    def _observe(self, part, signed):
        """Updates the errors of the gates; returns the `grid_values` of `part`."""
        clip = learned_clip(self.clip)
        values = nested.grid_values(part, clip, self.candidates, signed)
        errors = nested.errors_of(values, part, clip, self.candidates, signed)
        # A replica may have no sample of the last batch.
        is_known = None not in tuple(part.shape)
        share = 1.0 if is_known else ops.cast(ops.size(part) > 0, "float32")
        self.gates.observe(errors, share)
        return values

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "bits": self.candidates}


@keras.saving.register_keras_serializable(package="tfcompress")
class BitSharing(GatedBits):
    """Quantizer of weights on grids of several bits with one learned range.

    Weights are divided by the root mean square of their filter, a constant for the
    gradient. They are rounded on a zero-centered grid over [-v, v], v the learned
    `clip`. Gates choose the bits, see `BitGates`. Method: "Single-path Bit Sharing"
    (Liu et al., TPAMI 2023, arXiv 2101.04935).

    The paper normalizes by mean and standard deviation of the whole tensor. Its grid
    has no zero, so no integer kernel can hold it. `grid="paper"` reproduces both.

    Args:
        bits: ints. Candidates, some of 2 to 8.
        grid: "symmetric" or "paper".

    Variables:
        clip: float32 scalar, trainable. Bound of the range; |clip| is used.

    Raises:
        ValueError: if `bits` are no such candidates, or `grid` is unknown.
    """

    def __init__(
        self, bits: Sequence[int] = nested.BITS, grid: str = "symmetric", **kwargs: Any
    ) -> None:
        super().__init__(bits, **kwargs)
        if grid not in GRIDS:
            raise ValueError(f"`grid` is one of {GRIDS}. Received: grid={grid!r}.")
        self.grid = grid

    def build(self, kernel_shape: tuple[int, ...]) -> None:
        self.clip = self.add_weight(name="clip", initializer="ones")
        size = math.prod(kernel_shape)
        self.clip_gradient = 1.0 / math.sqrt(size)
        self._stride = min(-(-size // GATE_WEIGHTS), kernel_shape[-1])
        self.gates.build()

    def _factor(self, kernel: Tensor) -> Tensor:
        """Root mean square of each filter, broadcastable to the kernel."""
        axes = F.filter_axes(kernel, self.channel_axes)
        square = ops.square(ops.stop_gradient(kernel))
        mean = ops.mean(square, axis=axes, keepdims=True)
        return ops.sqrt(ops.maximum(mean, F.TINY))

    def _some_filters(self, x: Tensor) -> Tensor:
        """Part of a kernel, or of values per output channel, that gates learn from."""
        return x if self._stride == 1 else x[..., :: self._stride]

    def codes_and_scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.grid == "paper":
            raise ValueError(
                "Integer codes need a grid with a zero. Received: grid='paper', which "
                "has none. Use grid='symmetric'."
            )
        high = learned_clip(self.clip) * self._factor(x)
        steps = nested.open_levels(self.gates.gates(), self.candidates)
        codes = nested.nested_codes(x, high, steps, signed=True)
        scale = nested.step_size(high, steps, signed=True)
        return ops.stop_gradient(codes), ops.stop_gradient(scale)

    def call(self, kernel: Tensor, training: bool | None = None) -> Tensor:
        if self.grid == "paper":
            return self._on_paper_grid(kernel, training)
        # The gates of this step are those of the errors before it.
        rule, factor = self.gates.rule(training), self._factor(kernel)
        share = functools.partial(
            self._share, kernel, rule, self.clip_gradient, True, factor
        )
        if not self.gates.learn(training):
            return share()
        part = self._some_filters(ops.stop_gradient(kernel))
        values = self._observe(part / self._some_filters(factor), True)
        return share(self._some_filters, values)

    def _on_paper_grid(self, kernel, training):
        clip = learned_clip(self.clip, self.clip_gradient)
        unit = _standardized(kernel)
        if self.gates.learn(training):
            self.gates.observe(nested.mean_errors(unit, clip, self.candidates, True))
        return nested.paper_grid(
            unit, clip, self.gates.gates(training), self.candidates
        )

    def calibrate(self, kernel: ArrayLike) -> None:
        """Sets the range to the best one for the bits; in a search, the middle ones.

        Args:
            kernel: float tensor or variable.
        """
        self._calibrate(self._in_units_of_clip(kernel), signed=True)

    def candidate_clips(self, kernel: ArrayLike) -> dict[int, float]:
        """Returns the best range for each candidate, `{bits: clip}`.

        Args:
            kernel: float tensor or variable.
        """
        return best_clips(self._in_units_of_clip(kernel), self.candidates, signed=True)

    def _in_units_of_clip(self, kernel):
        kernel = ops.convert_to_tensor(kernel, "float32")
        if self.grid == "paper":
            unit = _standardized(kernel)
        else:
            unit = kernel / self._factor(kernel)
        return ops.convert_to_numpy(unit)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "grid": self.grid}


@keras.saving.register_keras_serializable(package="tfcompress")
class BitSharingActivation(GatedBits, ActivationQuantizer):
    """Quantizer of activations on grids of several bits.

    The range is learned: [0, v] after a ReLU, or [-v, v] if `signed`; see `BitSharing`.

    Args:
        bits: ints. Candidates, some of 2 to 8.
        signed: bool. Whether the input has negative values.

    Variables:
        clip: float32 scalar, trainable. Bound of the range; |clip| is used.
        calibrated: float32 scalar, not trainable. 1 after `calibrate`, else 0.

    Raises:
        ValueError: if `bits` are no such candidates.
    """

    def __init__(
        self, bits: Sequence[int] = nested.BITS, signed: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(bits, signed=signed, **kwargs)
        self._recorded: list[Tensor] | None = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.clip = self.add_weight(name="clip", initializer="ones")
        self.calibrated = self.add_weight(
            name="calibrated",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )
        self.gates.build()

    def step(self) -> Tensor:
        clip = learned_clip(self.clip)
        steps = nested.open_levels(self.gates.gates(), self.candidates)
        return nested.step_size(clip, steps, self.signed)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if self._recorded is not None:
            self._recorded.append(inputs)
            return inputs
        rule, scale = self.gates.rule(training), gradient_scale(inputs, 1)
        share = functools.partial(
            self._share, inputs, rule, scale, self.signed, int8=True
        )
        if not self.gates.learn(training):
            return share()
        values = self._observe(_some_samples(ops.stop_gradient(inputs)), self.signed)
        return share(sample=_some_samples, values=values)

    def record(self) -> None:
        """Lets calls return their inputs unchanged, and records these, until `discard`.

        A compiled function has to begin and to end this itself.
        """
        self._recorded = []

    def recorded(self) -> list[Tensor]:
        """Returns the inputs of all calls since `record`."""
        return self._recorded or []

    def discard(self) -> None:
        """Ends `record`."""
        self._recorded = None

    def calibrate(self, values: np.ndarray) -> None:
        """Sets the range to the best one for the present bits.

        Args:
            values: float vector. Inputs, or enough of them; none change nothing.
        """
        if values.size:
            self._calibrate(values, self.signed)
            self.calibrated.assign(1.0)

    def candidate_clips(self, values: np.ndarray) -> dict[int, float]:
        """Returns the best range for each candidate, `{bits: clip}`.

        Args:
            values: see `calibrate`. Without any, the present range serves all.
        """
        if not values.size:
            return dict.fromkeys(self.candidates, ops.convert_to_numpy(self.clip))
        return best_clips(values, self.candidates, self.signed)


def learned_clip(variable: Tensor, scale: float | Tensor | None = None) -> Tensor:
    """Returns |v| of the paper, at least 1e-6, with a scaled gradient.

    With 1 / sqrt(number of values in the range) as the gradient's scale, a range learns
    about as fast as the weights (Esser et al. 2020, section 2.2). None: no gradient.
    """
    (value,) = F.read(variable)
    if scale is None:
        return ops.stop_gradient(_positive(value))

    def forward(value, scale):
        clip, gradient = _clip(value, scale)
        return clip, lambda upstream: (gradient(upstream),)

    return F.custom_gradient(forward, value, constants=[scale])


def _clip(raw, scale):
    """The value of `learned_clip`, and its gradient to the variable."""
    return _positive(raw), lambda upstream: upstream * scale * ops.sign(raw)


def _positive(value):
    return ops.maximum(ops.abs(value), 1e-6)


def _standardized(kernel: Tensor) -> Tensor:
    """The paper's normalization: mean 0 and standard deviation 1 of all weights."""
    mean = ops.stop_gradient(ops.mean(kernel))
    std = ops.stop_gradient(ops.std(kernel))
    return (kernel - mean) / ops.maximum(std, math.sqrt(F.TINY))


def _some_samples(inputs: Tensor) -> Tensor:
    """Every `SAMPLE_STRIDE`-th sample of a batch, at least one."""
    # TensorFlow copies whole samples here, and single values in `inputs[::8]`.
    count = inputs.shape[0] if inputs.shape[0] is not None else ops.shape(inputs)[0]
    return ops.take(inputs, ops.arange(0, count, SAMPLE_STRIDE), axis=0)


def check_candidates(bits: Sequence[int], name: str = "bits") -> tuple[int, ...]:
    """Returns candidate bit-widths as an increasing tuple.

    Args:
        bits: ints. The candidates.
        name: str. Name of the argument, for the error.

    Raises:
        ValueError: unless they are a sequence of integers from 2 to 8.
    """
    found = () if isinstance(bits, str) or not np.iterable(bits) else tuple(bits)
    if not found or any(b not in range(2, 9) for b in found):
        raise ValueError(
            f"`{name}` are a tuple of integers from 2 to 8, such as {nested.BITS}. "
            f"Received: {name}={bits!r}."
        )
    return tuple(sorted({int(b) for b in found}))
