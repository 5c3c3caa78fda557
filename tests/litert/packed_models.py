"""Models of packed layers, made from plain Keras models."""

import keras
import numpy as np
from keras import layers as kl

from tfcompress import layers
from tfcompress.graph.rebuild import clone_layer, rebuild
from tfcompress.layers.kernel import TRAINING_ARGUMENTS
from tfcompress.layers.registry import forms_of


def make_packed(model, bits=(2, 4, 8)):
    """Packs a plain model's layers with random codes, with `bits` in rotation.

    Layers named "float..." stay plain; those named "zero..." get zero codes. Other
    weights become random, of both signs; variances stay positive.
    """
    rng = np.random.default_rng(0)
    widths = iter(bits * 99)

    def replace(layer):
        forms = forms_of(layer)
        if forms is None or layer.name.startswith("float"):
            return clone_layer(layer)
        config = layer.get_config()
        config = {k: config[k] for k in config if not k.endswith(TRAINING_ARGUMENTS)}
        config.pop("quantization_config", None)
        return forms.packed.from_config({**config, "kernel_bits": next(widths)})

    packed, pairs = rebuild(model, replace)
    for old, new in pairs:
        if isinstance(new, layers.PackedKernel):
            limit = 2 ** (new.kernel_bits - 1) - 1
            codes = rng.integers(-limit, limit + 1, new.kernel_shape)
            scale = rng.uniform(0.5, 1.5, new.kernel_scale.shape)
            spread = np.sqrt(np.prod(new.kernel_shape[:-1])) * limit
            new.set_kernel(codes * (not old.name.startswith("zero")), scale / spread)
            if getattr(new, "use_bias", False):
                new.bias.assign(rng.normal(size=new.bias.shape))
        elif isinstance(new, kl.Normalization):
            new.set_weights(old.get_weights())
            new.finalize_state()
        else:
            new.set_weights(
                [
                    rng.uniform(0.5, 1.5, variable.shape)
                    * (1 if "variance" in variable.name else rng.choice([-1, 1]))
                    for variable in new.weights
                ]
            )
    return packed


def make_digit_model():
    """A small packed classifier of MNIST digits, with INT2, INT4 and INT8."""
    inputs = keras.Input((28, 28, 1), name="digit")
    x = kl.Conv2D(6, 3, strides=2, activation="relu", name="first")(inputs)
    x = kl.DepthwiseConv2D(3, padding="same", name="middle")(x)
    x = kl.Conv2D(5, 3, strides=2, name="last")(x)
    x = kl.BatchNormalization(name="norm")(x)
    x = kl.GlobalAveragePooling2D()(x)
    outputs = kl.Dense(10, activation="softmax", name="head")(x)
    return make_packed(keras.Model(inputs, outputs, name="digits"))


def quantize_activation(bits, signed=False, scale=0.1, **kwargs):
    """A built `QuantizeActivation` with a given step."""
    layer = layers.QuantizeActivation(bits, signed, **kwargs)
    layer.build(None)
    layer.set_scale(scale)
    return layer
