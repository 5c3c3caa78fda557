"""Bit sharing: one tensor, every bit-width, and gates that choose."""

import math

import keras
import numpy as np
from keras import ops

from tfcompress.quantizers import functional as F
from tfcompress.quantizers import nested
from tfcompress.quantizers.activation import ActivationQuantizer, activation_range
from tfcompress.quantizers.gates import BitGates
from tfcompress.quantizers.quantizer import Quantizer

GRIDS = ("symmetric", "paper")
# Where the range may end, in units of the largest magnitude.
CLIP_FACTORS = np.geomspace(0.02, 1.0, 40)
CLIP_SAMPLES = 100_000
# This part of a batch tells what the gates of activations want to know of it.
ONE_OF = 8


class GatedBits:
    """Mixin before a quantizer: its `gates`, a `BitGates`, choose the bits.

    Args:
        bits: candidates, a subset of (2, 4, 8), or any one from 2 to 8.
    """

    def __init__(self, bits, **kwargs):
        super().__init__(**kwargs)
        self._candidates = check_candidates(bits)
        self.gates = BitGates(self._candidates, name="gates")

    @property
    def candidates(self):
        return self._candidates

    @property
    def bits(self):
        return self.gates.bits()

    def unfinished(self):
        if ops.convert_to_numpy(self.gates.frozen_bits) > 0:
            return None
        return (
            "the search for its bits has not ended; its gates now choose "
            f"{self.bits}. Train with `fit` to the end of the search."
        )

    def get_config(self):
        return {**super().get_config(), "bits": self.candidates}


@keras.saving.register_keras_serializable(package="tfcompress")
class BitSharing(GatedBits, Quantizer):
    """Weights on nested grids of 2, 4 and 8 bits with one learned range.

    Weights are divided by the root mean square of their filter, a constant for the
    gradient, and rounded on a zero-centred grid over [-v, v], the learned `clip` v.
    Gates choose the bits; see `BitGates`. "Single-path Bit Sharing" (Liu et al.,
    TPAMI 2023, arXiv 2101.04935): its quantizer, bit sharing and gates.

    Differences from the paper: it normalises by mean and standard deviation over
    the whole tensor, and its grid has no zero, so no integer kernel can hold it;
    `grid="paper"` does that, for reproduction only.

    Args:
        bits: candidates, a subset of (2, 4, 8), or any one from 2 to 8: plain
            quantization with a learned range.
        grid: "symmetric" or "paper".
    """

    def __init__(self, bits=nested.BITS, grid="symmetric", **kwargs):
        super().__init__(bits, **kwargs)
        if grid not in GRIDS:
            raise ValueError(f"`grid` is one of {GRIDS}. Received: grid={grid!r}.")
        self.grid = grid

    def build(self, kernel_shape):
        self.clip = self.add_weight(name="clip", initializer="ones")
        self.clip_gradient = 1.0 / math.sqrt(math.prod(kernel_shape))
        self.gates.build()

    def _normalized(self, kernel):
        """`(u, factor)` with kernel = u * factor, factor held constant."""
        if self.grid == "paper":
            mean = ops.stop_gradient(ops.mean(kernel))
            std = ops.stop_gradient(ops.std(kernel))
            return (kernel - mean) / ops.maximum(std, math.sqrt(F.TINY)), 1.0
        axes = F.filter_axes(kernel, self.channel_axes)
        square = ops.mean(ops.square(kernel), axis=axes, keepdims=True)
        factor = ops.stop_gradient(ops.sqrt(ops.maximum(square, F.TINY)))
        return kernel / factor, factor

    def codes_and_scale(self, x):
        if self.grid == "paper":
            raise ValueError(
                "A grid with a zero is needed for integer codes. Received: "
                "grid='paper', which has none. Use grid='symmetric'."
            )
        return self._codes_and_scale(x, self.gates.gates())

    def _codes_and_scale(self, x, gates):
        unit, factor = self._normalized(x)
        clip = learned_clip(self.clip)
        steps = nested.open_levels(gates, self.candidates)
        codes = nested.nested_codes(unit, clip, steps, signed=True)
        scale = nested.step_size(clip, steps, signed=True) * factor
        return ops.stop_gradient(codes), ops.stop_gradient(scale)

    def call(self, kernel, training=None):
        unit, factor = self._normalized(kernel)
        clip = learned_clip(self.clip, self.clip_gradient)
        gates = self.gates.gates()
        if training and self.gates.threshold is not None:
            self.gates.observe(nested.mean_errors(unit, clip, self.candidates, True))
        if self.grid == "paper":
            return nested.paper_grid(unit, clip, gates, self.candidates)
        surrogate = nested.share_bits(
            unit, clip, gates, self.candidates, True, self.gates.learn()
        )
        codes, scale = self._codes_and_scale(kernel, gates)
        return F.straight_through(codes * scale, surrogate * factor)

    def calibrate(self, kernel):
        """Starts the range where the bits are best: in a search, the middle ones.

        Args:
            kernel: float tensor or variable.
        """
        unit, _ = self._normalized(ops.convert_to_tensor(kernel, "float32"))
        calibrate(self, ops.convert_to_numpy(unit), signed=True)

    def get_config(self):
        return {**super().get_config(), "grid": self.grid}


@keras.saving.register_keras_serializable(package="tfcompress")
class BitSharingActivation(GatedBits, ActivationQuantizer):
    """Activations on nested grids of 2, 4 and 8 bits with one learned range.

    The range is [0, v] after a ReLU and the zero-centred [-v, v] elsewhere
    (`signed`); see `BitSharing`.

    Args:
        bits: candidates, a subset of (2, 4, 8), or any one from 2 to 8.
        signed: whether values below zero occur.
    """

    def __init__(self, bits=nested.BITS, signed=False, **kwargs):
        super().__init__(bits, signed=signed, **kwargs)
        self._recorded = None

    def build(self, input_shape):
        self.clip = self.add_weight(name="clip", initializer="ones")
        self.calibrated = self.add_weight(
            name="calibrated",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )
        features = [size for size in input_shape[1:] if size]
        self.clip_gradient = 1.0 / math.sqrt(max(1, math.prod(features)))
        self.gates.build()

    def step(self):
        clip = learned_clip(self.clip)
        steps = nested.open_levels(self.gates.gates(), self.candidates)
        return nested.step_size(clip, steps, self.signed)

    def call(self, inputs, training=None):
        if self._recorded is not None:
            self._recorded.append(_sample(ops.convert_to_numpy(inputs)))
            return inputs
        clip = learned_clip(self.clip, self.clip_gradient)
        if training and self.gates.threshold is not None:
            self._observe(inputs, clip)
        return nested.share_bits(
            inputs,
            clip,
            self.gates.gates(),
            self.candidates,
            self.signed,
            self.gates.learn(),
            ONE_OF,
        )

    def _observe(self, inputs, clip):
        (part,) = nested.every_nth((inputs,), ONE_OF)
        # A replica may be left without any sample of the last batch.
        some = ops.convert_to_tensor(ops.shape(part)[0] > 0)
        errors = ops.cond(
            ops.logical_and(self.gates.learn() > 0, some),
            lambda: nested.mean_errors(part, clip, self.candidates, self.signed),
            lambda: ops.convert_to_tensor(self.gates.errors),
        )
        self.gates.observe(errors)

    def record(self):
        """Until `calibrate`, keeps a sample of its inputs and lets them pass as they
        are; for eager calls."""
        self._recorded = []

    def calibrate(self):
        """Starts the range where the bits of now are best for the recorded inputs."""
        values, self._recorded = self._recorded, None
        if values:
            calibrate(self, np.concatenate(values), self.signed)
            self.calibrated.assign(1.0)


def learned_clip(variable, gradient_scale=None):
    """|v| of the paper, never 0; its gradient times `gradient_scale`.

    Learned step size quantization (Esser et al. 2020, section 2.2) makes a range
    learn about as fast as the weights: 1 / sqrt(number of values it bounds).
    """
    clip = ops.maximum(ops.abs(ops.convert_to_tensor(variable)), 1e-6)
    if gradient_scale is None:
        return ops.stop_gradient(clip)
    return F.straight_through(clip, clip * gradient_scale)


def check_candidates(bits):
    """Increasing tuple of bit-widths.

    Raises:
        ValueError: unless they are some of 2, 4 and 8, or one from 2 to 8.
    """
    allowed = range(2, 9) if len(bits) == 1 else nested.BITS
    if not bits or any(b not in allowed for b in bits):
        raise ValueError(
            f"`bits` are some of {nested.BITS}, whose grids are nested, or one integer "
            f"from 2 to 8. Received: bits={bits}."
        )
    return tuple(sorted(set(bits)))


def calibrate(quantizer, values, signed):
    """Sets `clip` to what squared error is least with, and `errors` to match.

    Args:
        quantizer: a `BitSharing` or `BitSharingActivation`.
        values: float array, in the units of the clip.
        signed: whether the range is centred on zero.
    """
    values = _sample(values)
    gates = quantizer.gates
    fixed = int(ops.convert_to_numpy(gates.frozen_bits))
    # One range serves all candidates while the search goes on: the middle one's.
    bits = fixed or gates.candidates[len(gates.candidates) // 2]
    clip = best_clip(values, bits, signed)
    quantizer.clip.assign(clip)
    if gates.threshold is not None:
        tensor = ops.convert_to_tensor(values)
        clip = ops.convert_to_tensor(clip, "float32")
        gates.errors.assign(nested.mean_errors(tensor, clip, gates.candidates, signed))


def best_clip(values, bits, signed):
    """The end of the range with the least squared error, a float (line search).

    Args:
        values: float array of any shape.
        bits: of the grid.
        signed: whether the range is [-clip, clip] or [0, clip].
    """
    largest = float(np.abs(values).max()) if signed else float(values.max(initial=0.0))
    if largest <= 0:
        return 1.0
    low, high = activation_range(bits, signed)

    def error(clip):
        step = (2 if signed else 1) * clip / nested.levels(bits)
        rounded = np.clip(np.round(values / step), low, high) * step
        return float(np.square(values - rounded).mean())

    return min((largest * factor for factor in CLIP_FACTORS), key=error)


def _sample(values):
    values = np.asarray(values, np.float32).reshape(-1)
    if values.size <= CLIP_SAMPLES:
        return values
    # At random: every n-th value may be of the same few channels.
    return values[np.random.default_rng(0).integers(values.size, size=CLIP_SAMPLES)]
