"""The proof: a `.tflite` holds what its Keras model plans, and predicts like it."""

import warnings

import keras
import numpy as np
from keras import ops

from tfcompress.litert.kernels import packed_kernels
from tfcompress.litert.levels import SameLevels, has_quantized_activations
from tfcompress.litert.runtime import Runner, read_file, split, try_out
from tfcompress.litert.signature import functional, input_names, output_names
from tfcompress.litert.stored import kernel_tensors, recognise

BATCH_SIZE = 128
# Largest difference allowed, relative to the output's largest magnitude; and
# absolute, for an output that is all zero.
TOLERANCE = 1e-4
NOISE = 1e-7
# Where operators round activations to 8 bits as they go: the root mean square of
# differences, relative to that of the outputs, and the share of samples with the same
# class below which the user is warned.
ROUNDED_TOLERANCE = 0.3
LEAST_AGREEMENT = 0.995
# Without samples: this many random ones, of this size where a size is free.
RANDOM_SAMPLES = 8
FREE_SIZE = 32


def check(path, model, verify=None):
    """Checks a `.tflite` against the packed Keras model it was exported from.

    Asserts that each packed kernel is in the file with its codes, in an integer
    type; and that the stock LiteRT runtime predicts like Keras. A model with quantized
    activations must do so on equal levels, and a file for latency only nearly: see
    `compare`.

    Args:
        path: the `.tflite`.
        model: what `tfcompress.finalize` returned.
        verify: samples to compare on: an array, a list or dict of arrays for
            several inputs, or a batched `tf.data.Dataset` of `x` or `(x, y)`.
            None takes a few random samples.

    Returns:
        Dict with "agreement" ({"samples", "top1", "max_abs_diff"}; "top1" is the
        share of samples with the same class, None if no output is a vector of
        classes), "verified_on" ("samples" or "random") and "tensors" (a list of
        {"layer", "tensor", "type", "container_bits", "shape", "bytes"}).

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is damaged, of another model, or disagrees with
            `model`; or if `verify` does not fit the model.
    """
    kernels = packed_kernels(model)
    model = functional(model)
    samples = Samples(model, verify)
    try_out(path, samples.smallest_shapes())
    content = read_file(path)
    stored = kernel_tensors(content)
    tensors = recognise(stored, kernels)
    exact = not any(tensor.native for tensor in stored)
    return {**compare(content, model, samples, exact), "tensors": tensors}


class Samples:
    """What Keras and LiteRT are given; iterates over checked batches.

    Attributes:
        given: whether the user gave it; random otherwise.

    Args:
        model: the Functional model that takes them.
        data: as `check` takes `verify`.
        argument: the name that the user knows it under.
    """

    def __init__(self, model, data, argument="verify"):
        self.given = data is not None
        self._argument = argument
        self._inputs = keras.tree.flatten(model.input)
        self._names = input_names(model)
        # A model built with a batch size takes no other.
        self._batch_size = self._inputs[0].shape[0] or BATCH_SIZE
        self._data = data if self.given else self._random()

    def __iter__(self):
        """Yields lists of one array per input."""
        for batch in split(self._data, self._names, self._batch_size):
            received = [array.shape for array in batch]
            expected = [tuple(x.shape) for x in self._inputs]
            if not all(map(_fits, received, expected)):
                raise ValueError(
                    f"`{self._argument}` should hold batches of shapes {expected} "
                    f"(None for any size), one per input. Received: {received}."
                )
            yield batch

    def smallest_shapes(self):
        """The shape of each input for a batch as small as the model takes."""
        return [
            (x.shape[0] or 1, *array.shape[1:])
            for x, array in zip(self._inputs, next(iter(self)), strict=True)
        ]

    def _random(self):
        rng = np.random.default_rng(0)
        arrays = []
        for x in self._inputs:
            batch, *sizes = x.shape
            shape = [batch or RANDOM_SAMPLES, *(size or FREE_SIZE for size in sizes)]
            if "float" in x.dtype:
                arrays.append(rng.standard_normal(shape).astype(x.dtype))
            else:  # 0 and 1 are valid wherever integers mean something
                arrays.append(rng.integers(0, 2, shape).astype(x.dtype))
        return arrays


def _fits(shape, expected):
    return len(shape) == len(expected) and all(
        wanted in (None, size) for size, wanted in zip(shape, expected, strict=True)
    )


def compare(content, model, samples, exact=True):
    """Runs LiteRT and Keras on the same samples.

    With quantized activations the two differ by more than float arithmetic explains:
    a last bit that tips a rounding moves an activation by a whole level, and that
    tips others behind it. Therefore it is not the predictions that must agree then,
    but every step: Keras, given the levels that LiteRT rounds to, must return
    LiteRT's outputs, and what LiteRT rounds must be within `TOLERANCE` of the
    largest level of what Keras rounds there. The agreement returned is that of the
    predictions, each with its own levels.

    Args:
        content: a `.tflite`, bytes.
        model: the Functional model that it was exported from.
        samples: `Samples`.
        exact: whether it computes in float. Operators that read integer kernels
            themselves round their inputs to 8 bits, by the range of each sample: then
            predictions must be close, up to `ROUNDED_TOLERANCE`.

    Returns:
        The parts "agreement" and "verified_on" of `check`'s result.

    Raises:
        ValueError: if an output is not finite, or, on equal levels, further from
            Keras's than `TOLERANCE` of its largest magnitude; or if the two do not
            round the same values.

    Warns:
        UserWarning: if it is not exact, and fewer than `LEAST_AGREEMENT` of the samples
            that were given have the same class.
    """
    runner = Runner(content)
    quantized = exact and has_quantized_activations(model)
    on_same_levels = SameLevels(content, model, TOLERANCE) if quantized else None
    names = output_names(model)
    count, classified, agreeing = 0, 0, 0
    largest, difference, unexplained, power, noise = (
        np.zeros(len(names)) for _ in range(5)
    )
    for batch in samples:
        expected = _keras_outputs(model, batch)
        received = runner(batch)
        _check_outputs(names, expected, received)
        found = _differences(expected, received)
        difference = np.maximum(difference, found)
        if quantized:
            found = _differences(*on_same_levels(batch))
        unexplained = np.maximum(unexplained, found)
        largest = np.maximum(largest, [np.abs(y).max() for y in expected])
        power += [np.square(y, dtype=float).sum() for y in expected]
        noise += [
            np.square(y - z, dtype=float).sum()
            for y, z in zip(expected, received, strict=True)
        ]
        for y, z in zip(expected, received, strict=True):
            if y.ndim == 2 and y.shape[1] > 1:
                classified += len(y)
                agreeing += int((y.argmax(axis=1) == z.argmax(axis=1)).sum())
        count += len(batch[0])
    top1 = agreeing / classified if classified else None
    if not exact:
        _check_nearly(names, np.sqrt(noise / np.maximum(power, NOISE)), top1, samples)
    limits = np.maximum(TOLERANCE * largest, NOISE)
    for name, limit, found in zip(names, limits, unexplained, strict=True):
        if exact and not found <= limit:
            raise ValueError(
                f"LiteRT should predict like Keras: '{name}' within {limit:.3g}, "
                f"{TOLERANCE} of its largest magnitude. Received: a difference of "
                f"{found:.3g} over {count} samples. The file is not this model's, or "
                "the runtime computes one of its operators differently."
            )
    return {
        "agreement": {
            "samples": count,
            "top1": top1,
            "max_abs_diff": float(difference.max()),
        },
        "verified_on": "samples" if samples.given else "random",
    }


def _check_nearly(names, differences, top1, samples):
    for name, found in zip(names, differences, strict=True):
        if not found <= ROUNDED_TOLERANCE:
            raise ValueError(
                f"LiteRT should predict nearly like Keras: '{name}' within "
                f"{ROUNDED_TOLERANCE:.0%} of its root mean square. Received: "
                f"{found:.1%}. Kernels that are read as integers make operators round "
                "their inputs to 8 bits, and this model does not stand that, or the "
                "file is not this model's. Export it with optimize='size'."
            )
    if samples.given and top1 is not None and top1 < LEAST_AGREEMENT:
        warnings.warn(
            f"LiteRT and Keras have the same class for {top1:.2%} of the samples, less "
            f"than {LEAST_AGREEMENT:.1%}: operators round their inputs to 8 bits. Look "
            "at the accuracy of the file, or export with optimize='size'.",
            stacklevel=4,
        )


def _differences(expected, received):
    """The largest absolute difference of each output."""
    return [np.abs(y - z).max() for y, z in zip(expected, received, strict=True)]


def _keras_outputs(model, batch):
    inputs = keras.tree.pack_sequence_as(model.input, batch)
    # Not `predict`: it would compile first, and leave its function in the model.
    outputs = keras.tree.flatten(model(inputs, training=False))
    return [ops.convert_to_numpy(output) for output in outputs]


def _check_outputs(names, expected, received):
    shapes = [[y.shape for y in outputs] for outputs in (expected, received)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The file should return arrays of shapes {shapes[0]}, as the model does. "
            f"Received: {shapes[1]}. It is the file of another model."
        )
    for name, y, z in zip(names, expected, received, strict=True):
        for who, values in (("Keras", y), ("LiteRT", z)):
            if not np.isfinite(values).all():
                raise ValueError(
                    f"Finite outputs are expected. Received: NaN or infinity in "
                    f"'{name}' from {who}."
                )
