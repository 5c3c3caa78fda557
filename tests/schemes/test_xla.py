"""Training under XLA, which TPUs need."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc

SCHEMES = {
    "ternary": tfc.PrunedTernary(sparsity=0.8, first_last="ternary"),
    "bit sharing": tfc.BitSharing(bops="1/20", group_size=2),
    "decomposition": tfc.Decomposition(macs="1/2"),
    "size": tfc.SizeConstrained(value_bits="1/8"),
}
# Compiling these takes long.
SLOW = ("ternary", "bit sharing", "decomposition")


def net():
    inputs = keras.Input((14, 14, 1))
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="first")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(10, name="last")(x))


@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param(scheme, id=name, marks=[pytest.mark.slow] * (name in SLOW))
        for name, scheme in SCHEMES.items()
    ],
)
def test_fit_under_xla_predicts_like_fit_without(scheme, mnist):
    images, labels = mnist[0][0][:60, ::2, ::2], mnist[0][1][:60]
    ends = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        student = tfc.compress(net(), scheme)
        student.compile(
            keras.optimizers.SGD(0.01, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=jit_compile,
        )
        assert student.jit_compile is jit_compile
        student.fit(images, labels, batch_size=12, epochs=2, shuffle=False, verbose=0)
        ends.append(student.predict(images, verbose=0))
    # The last bit before a rounding may differ.
    np.testing.assert_allclose(*ends, atol=0.05 * np.abs(ends[0]).max())
