"""A search space of five small kernels, for tests of its parts."""

import keras
import numpy as np
from keras import layers

from tfcompress.layers import QuantConv2D, QuantDense, QuantDepthwiseConv2D
from tfcompress.quantizers import Codebook
from tfcompress.schemes.size_constrained.budget import SizeBudget
from tfcompress.schemes.size_constrained.scheme import BIT_WIDTHS
from tfcompress.schemes.size_constrained.search_space import SizeSpace

SIZES = {
    "conv": 3 * 3 * 2 * 8, "depthwise": 3 * 3 * 8,
    "wide": 8 * 300, "narrow": 300 * 3, "few": 3 * 2,
}  # fmt: skip
# (unit, codebook, total)
BUDGETS = {
    "xz, uniform": ("xz_bytes", "uniform", 500),
    "xz, kmeans": ("xz_bytes", "kmeans", 500),
    "value bits, uniform": ("value_bits", "uniform", 1500),
    "value bits, kmeans": ("value_bits", "kmeans", 1500),
    "bytes": ("bytes", "uniform", 1700),
}
SPARSE = [name for name in BUDGETS if name != "bytes"]


def _with_codebook(kind, *args, **kwargs):
    return kind(*args, kernel_quantizer=Codebook(), use_bias=False, **kwargs)


def network():
    """Kernels of different kinds, lengths and tails; one with 6 weights."""
    x = inputs = keras.Input((6, 6, 2))
    x = _with_codebook(QuantConv2D, 8, 3, name="conv")(x)
    x = _with_codebook(QuantDepthwiseConv2D, 3, name="depthwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    for name, units in (("wide", 300), ("narrow", 3), ("few", 2)):
        x = _with_codebook(QuantDense, units, name=name)(x)
    model = keras.Model(inputs, x)
    rng = np.random.default_rng(0)
    for scale, name in zip((1.0, 0.5, 0.05, 0.2, 3.0), SIZES, strict=True):
        kernel = model.get_layer(name).latent_kernel
        kernel.assign(scale * rng.laplace(size=kernel.shape))
    return model


def new_space(name):
    """A `SizeSpace` with one of `BUDGETS`, before its start."""
    unit, codebook, total = BUDGETS[name]
    space = SizeSpace(network(), codebook, BIT_WIDTHS[codebook, unit != "bytes"])
    space.set_budget(SizeBudget(total, unit, codebook))
    return space


def move(codebooks, seed=1, size=0.3):
    """Adds noise to each latent kernel, as training does: zeros do not stay."""
    rng = np.random.default_rng(seed)
    for layer in codebooks.layers.values():
        w = np.array(layer.latent_kernel)
        layer.latent_kernel.assign(w + size * w.std() * rng.normal(size=w.shape))


def scale_kernels(codebooks, factors):
    for name, factor in factors.items():
        kernel = codebooks.layers[name].latent_kernel
        kernel.assign(factor * np.array(kernel))


def counts(codebooks):
    """Number of kept weights by layer name."""
    return {name: int(mask.sum()) for name, mask in codebooks.masks().items()}


def used(space):
    """Size of the codes as a share of the budget."""
    budget = space.allocation.budget
    return budget.size_of(space.codebooks.codes()) / budget.total


def digits_net():
    """A float network whose steps take little time; 4156 weights."""
    normal = {"kernel_initializer": "he_normal"}
    x = inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(4, 3, strides=4, padding="same", activation="relu", **normal)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(20, activation="relu", **normal)(x)
    return keras.Model(inputs, layers.Dense(10, **normal)(x))
