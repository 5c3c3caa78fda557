"""What every quantizer can do."""

import keras
import numpy as np
from keras import ops


class Quantizer(keras.layers.Layer):
    """Turns a float tensor into few bits; base class.

    A quantizer is a Keras layer, so that what it learns or keeps is tracked,
    saved and restored with the layer it belongs to. One object serves one
    layer, which tells it which axes are output channels before it is built.
    It always computes in float32: under a mixed precision policy the codes that
    train are then the codes that ship.

    Subclasses give `bits` (an integer, 2 to 8) and `codes_and_scale(x)`.
    """

    def __init__(self, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self.channel_axes = (-1,)

    @property
    def candidates(self):
        """The bit-widths that training may choose from: a tuple, mostly of one."""
        return (self.bits,)

    def codes_and_scale(self, x):
        """`(codes, scale)` as float32 tensors, `codes` integral; scale > 0."""
        raise NotImplementedError

    def encode(self, x):
        """Exact integer form of what `call(x)` returns.

        Args:
            x: float tensor or variable.

        Returns:
            `(codes, scale)`: int8 array of `x`'s shape and positive float32
            array that broadcasts to it, with `codes * scale` equal to `self(x)`.
        """
        codes, scale = self.codes_and_scale(ops.convert_to_tensor(x, "float32"))
        return (
            np.asarray(ops.convert_to_numpy(codes)).astype(np.int8),
            np.asarray(ops.convert_to_numpy(scale)).astype(np.float32),
        )

    def unfinished(self):
        """What training has not reached yet, as a sentence; None when all is done."""
        return None

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_build_config(self):
        return None  # Built by the layer it belongs to, also when that is loaded.


def copy_quantizer(quantizer):
    """A fresh, unbuilt quantizer of the same configuration; None stays None."""
    if quantizer is None:
        return None
    return type(quantizer).from_config(quantizer.get_config())
