"""What quantized and packed layers share: a kernel that is computed when it is read."""

import keras
import numpy as np
from keras import ops

# Keras kernels end in their output channels; a depthwise kernel ends in
# (input channel, multiplier), which together are its output channels.
CONV_OR_DENSE = (-1,)
DEPTHWISE = (-2, -1)


def value_of(variable):
    """A copy of a variable's value, an array that shares no memory with it.

    On some backends a variable that is assigned another's value takes its very buffer,
    and the first training step gives that away.
    """
    return np.array(ops.convert_to_numpy(variable))


class ComputedKernel:
    """Mixin before a Keras layer: `kernel` is computed from the variable `_kernel`.

    Subclasses give `compute_kernel()`.

    Attributes:
        channel_axes: the kernel's axes of output channels.
    """

    channel_axes = CONV_OR_DENSE

    def compute_kernel(self):
        """The kernel that the layer computes with, a float tensor."""
        raise NotImplementedError

    @property
    def kernel(self):
        """The kernel that the layer computes with, a float tensor."""
        if not self.built:
            raise AttributeError("Build the layer before accessing `kernel`.")
        return self.compute_kernel()

    @kernel.setter
    def kernel(self, variable):
        # Keras's depthwise layers assign `kernel` where others assign `_kernel`.
        self._kernel = variable

    def save_own_variables(self, store):
        # Keras's convolutions would save `kernel`, the computed value.
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)
