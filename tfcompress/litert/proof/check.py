"""Check that a `.tflite` holds the planned kernels and predicts like Keras."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.graph.signature import functional, output_names
from tfcompress.litert.kernels import packed_kernels
from tfcompress.litert.proof.levels import SameLevels, has_quantized_activations
from tfcompress.litert.proof.samples import Samples
from tfcompress.litert.runtime import Runner, read_file, try_out
from tfcompress.litert.stored import kernel_tensors, recognize
from tfcompress.progress_bar import announced, progress_bar

# Largest difference allowed: relative to the output's largest magnitude, and
# absolute for an output that is all zero.
TOLERANCE = 1e-4
NOISE = 1e-7
# Limits where operators round activations to 8 bits: the root mean square of
# differences, relative to that of the outputs, and the share of samples with the same
# class below which the user is warned.
ROUNDED_TOLERANCE = 0.3
LEAST_AGREEMENT = 0.995
_REMEDIES = {
    "LiteRT": "Export it with optimize='size'.",
    "TensorFlow Lite Micro": "Train with `activation_bits=8` of the scheme, or give "
    "other `representative_data`.",
}


def check(
    path: str | os.PathLike, model: keras.Model, verify: Any = None
) -> dict[str, Any]:
    """Checks a `.tflite` against the packed Keras model it was exported from.

    Each packed kernel must be in the file with its codes, in an integer type, and the
    stock LiteRT runtime must predict like Keras. A model with quantized activations is
    compared on equal levels, and a file for latency only nearly: see `compare`.

    Args:
        path: the `.tflite`.
        model: the packed model, as `tfcompress.finalize` returns it.
        verify: samples to compare on: an array, a list or dict of arrays for
            several inputs, or a batched `tf.data.Dataset` of `x` or `(x, y)`.
            None takes a few random samples.

    Returns:
        Dict of "agreement", {"samples", "top1", "max_abs_diff"}; "verified_on",
        "samples" or "random"; and "tensors", a list of {"layer", "tensor", "type",
        "container_bits", "shape", "bytes"}. "top1" is the share of samples with the
        same class, None if no output is a vector of classes.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is damaged, of another model, or disagrees with
            `model`; or if `verify` does not fit the model.
    """
    with announced(f"Check of '{os.fspath(path)}'"):
        kernels = packed_kernels(model)
        model = functional(model)
        samples = Samples(model, verify)
        content = read_file(path)
        stored = kernel_tensors(content)
        try_out(path, samples.smallest_shapes())
        tensors = recognize(stored, kernels)
        exact = not any(tensor.native for tensor in stored)
        return {**compare(content, model, samples, exact), "tensors": tensors}


def compare(
    content: bytes,
    model: keras.Model,
    samples: Samples,
    exact: bool = True,
    run: Callable[[list[np.ndarray]], list[np.ndarray]] | None = None,
    runtime: str = "LiteRT",
) -> dict[str, Any]:
    """Runs LiteRT and Keras on the same samples, and checks that they agree.

    Quantized activations differ by more than float arithmetic explains. A difference in
    the last bit moves a rounded activation by a whole level, which moves later ones
    too. There every step must agree instead of the predictions. On the levels that
    LiteRT rounds to, Keras must return LiteRT's outputs. Before each rounding the two
    may differ by `TOLERANCE` of the largest level, and by the error of float32 sums
    where that is larger, see `SameLevels`. The agreement returned is that of
    the predictions, each with its own levels.

    Args:
        content: bytes of a `.tflite`.
        model: the Functional model that it was exported from.
        samples: `Samples`.
        exact: bool. Whether the file computes in float. Operators that read integer
            kernels themselves round their inputs to 8 bits, by the range of each
            sample. Predictions must then be close, up to `ROUNDED_TOLERANCE`.
        run: function from a batch to outputs, both lists of arrays, that runs the file
            in another runtime; None for LiteRT.
        runtime: str. Name of the runtime, for messages.

    Returns:
        Dict of "agreement" and "verified_on", as in the result of `check`.

    Raises:
        ValueError: if an output is not finite, or, on equal levels, further from
            Keras's than `TOLERANCE` of its largest magnitude; or if the two do not
            round the same values.

    Warns:
        UserWarning: if the file is not exact, and fewer than `LEAST_AGREEMENT` of the
            given samples have the same class.
    """
    runner = run or Runner(content)
    quantized = exact and has_quantized_activations(model)
    on_same_levels = SameLevels(content, model, TOLERANCE) if quantized else None
    comparison = _Comparison(output_names(model), runtime)
    with progress_bar("Comparison with Keras", samples.batches()) as bar:
        for batch in bar.over(samples):
            outputs = _keras_outputs(model, batch), runner(batch)
            comparison.add(*outputs)
            if on_same_levels is not None:
                outputs = on_same_levels(batch)
            comparison.add_on_same_levels(*outputs)
    if exact:
        comparison.check_equal()
    else:
        comparison.check_close()
        _warn_of_other_classes(comparison.top1(), samples, runtime)
    return {
        "agreement": {
            "samples": comparison.samples,
            "top1": comparison.top1(),
            "max_abs_diff": float(comparison.difference.max()),
        },
        "verified_on": "samples" if samples.given else "random",
    }


class _Comparison:
    """Statistics of the differences between Keras's and LiteRT's outputs.

    Attributes:
        samples: int. Number of samples.
        difference: float array, (outputs,). Largest absolute differences.

    Args:
        names: names of the outputs.
        runtime: str. Name of the runtime.
    """

    def __init__(self, names: Sequence[str], runtime: str) -> None:
        self._runtime = runtime
        self.samples = 0
        self.difference = np.zeros(len(names))
        self._names = names
        self._on_same_levels, self._largest, self._power, self._noise = (
            np.zeros(len(names)) for _ in range(4)
        )
        self._classified = self._agreeing = 0

    def add(self, expected: list[np.ndarray], received: list[np.ndarray]) -> None:
        """Adds the outputs of one batch.

        Raises:
            ValueError: if shapes differ, or an output is not finite.
        """
        _check_outputs(self._names, expected, received, self._runtime)
        expected, received = _numbers(expected), _numbers(received)
        self.samples += len(expected[0])
        found = _differences(expected, received)
        self.difference = np.maximum(self.difference, found)
        self._largest = np.maximum(self._largest, [np.abs(y).max() for y in expected])
        for i, (y, z) in enumerate(zip(expected, received, strict=True)):
            self._power[i] += np.square(y, dtype=float).sum()
            self._noise[i] += np.square(y - z, dtype=float).sum()
            if y.ndim == 2 and y.shape[1] > 1:
                self._classified += len(y)
                self._agreeing += int((y.argmax(axis=1) == z.argmax(axis=1)).sum())

    def add_on_same_levels(
        self, expected: list[np.ndarray], received: list[np.ndarray]
    ) -> None:
        """Adds the outputs of the same batch with equal levels of activations."""
        found = _differences(_numbers(expected), _numbers(received))
        self._on_same_levels = np.maximum(self._on_same_levels, found)

    def top1(self) -> float | None:
        """Returns the share of samples with the same class, None without classes."""
        return self._agreeing / self._classified if self._classified else None

    def check_equal(self) -> None:
        """Checks that outputs on equal levels differ by float arithmetic only."""
        limits = np.maximum(TOLERANCE * self._largest, NOISE)
        for name, limit, found in zip(
            self._names, limits, self._on_same_levels, strict=True
        ):
            if not found <= limit:  # NaN is not
                raise ValueError(
                    f"LiteRT should predict like Keras: '{name}' within {limit:.3g}, "
                    f"{TOLERANCE} of its largest magnitude. Received: a difference of "
                    f"{found:.3g} over {self.samples} samples. The file is not this "
                    "model's, or the runtime computes one of its operators "
                    "differently."
                )

    def check_close(self) -> None:
        """Checks that outputs differ by no more than `ROUNDED_TOLERANCE`."""
        differences = np.sqrt(self._noise / np.maximum(self._power, NOISE))
        for name, found in zip(self._names, differences, strict=True):
            if not found <= ROUNDED_TOLERANCE:
                raise ValueError(
                    f"{self._runtime} should predict nearly like Keras: '{name}' "
                    f"within {ROUNDED_TOLERANCE:.0%} of its root mean square. "
                    f"Received: {found:.1%}. Operators that read integer kernels round "
                    "their inputs to 8 bits. The model does not tolerate that, or the "
                    f"file is not this model's. {_REMEDIES[self._runtime]}"
                )


def _warn_of_other_classes(top1, samples, runtime):
    if samples.given and top1 is not None and top1 < LEAST_AGREEMENT:
        warnings.warn(
            f"{runtime} and Keras predict the same class for {top1:.2%} of the "
            f"samples, less than {LEAST_AGREEMENT:.1%}: operators round their inputs "
            f"to 8 bits. Measure the accuracy of the file. {_REMEDIES[runtime]}",
            stacklevel=4,
        )


def _numbers(outputs):
    """Arrays that can be subtracted: those of booleans and integers as float64."""
    is_float = [np.issubdtype(output.dtype, np.floating) for output in outputs]
    return [
        output if floating else output.astype(float)
        for output, floating in zip(outputs, is_float, strict=True)
    ]


def _differences(expected, received):
    """Returns the largest absolute difference of each output."""
    return [np.abs(y - z).max() for y, z in zip(expected, received, strict=True)]


def _keras_outputs(model, batch):
    inputs = keras.tree.pack_sequence_as(model.input, batch)
    # Not `predict`: it would compile first, and leave its function in the model.
    outputs = keras.tree.flatten(model(inputs, training=False))
    return [ops.convert_to_numpy(output) for output in outputs]


def _check_outputs(names, expected, received, runtime):
    shapes = [[y.shape for y in outputs] for outputs in (expected, received)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The file should return arrays of shapes {shapes[0]}, as the model does. "
            f"Received: {shapes[1]}. It is the file of another model."
        )
    for name, y, z in zip(names, expected, received, strict=True):
        for who, values in (("Keras", y), (runtime, z)):
            if not np.isfinite(values).all():
                raise ValueError(
                    f"Finite outputs are expected. Received: NaN or infinity in "
                    f"'{name}' from {who}."
                )
