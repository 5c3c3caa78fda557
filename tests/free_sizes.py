"""Models whose inputs have free sizes, and data for them."""

import keras
import numpy as np
from keras import layers as kl


def images(*size, channels=3, classes=4):
    """Classifier of images, with one dense layer of known size."""
    x = inputs = keras.Input((*size, channels))
    for i, filters in enumerate((8, 16)):
        x = kl.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{i}")(x)
        x = kl.ReLU()(kl.BatchNormalization()(x))
        x = kl.MaxPooling2D()(x)
    x = kl.Conv2D(16, 3, padding="same", activation="relu", name="conv2")(x)
    x = kl.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, kl.Dense(classes, name="head")(x))


def pixels(*size):
    """Fully convolutional network, one class per pixel."""
    x = inputs = keras.Input((*size, 3))
    x = kl.Conv2D(8, 3, padding="same", activation="relu", name="conv0")(x)
    x = kl.DepthwiseConv2D(3, padding="same", activation="relu", name="conv1")(x)
    x = kl.Conv2D(16, 3, 2, padding="same", activation="relu", name="conv2")(x)
    x = kl.UpSampling2D()(x)
    x = kl.Conv2D(8, 3, padding="same", activation="relu", name="conv3")(x)
    return keras.Model(inputs, kl.Conv2D(4, 1, name="head")(x))


def audio(*length):
    """Classifier of sequences of vectors."""
    x = inputs = keras.Input((*length, 6))
    for i in range(2):
        x = kl.Conv1D(16, 3, padding="same", activation="relu", name=f"conv{i}")(x)
    x = kl.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, kl.Dense(4, name="head")(x))


def tokens(*length):
    """Classifier of sequences of integers."""
    x = inputs = keras.Input(length, dtype="int32")
    x = kl.Dense(16, activation="relu", name="conv0")(
        kl.Embedding(20, 16, name="embedding")(x)
    )
    x = kl.Conv1D(16, 3, padding="same", activation="relu", name="conv1")(x)
    x = kl.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, kl.Dense(4, name="head")(x))


# By name: the function, two sizes, and the rest of the shape.
KINDS = {
    "images": (images, (16, 16), (24, 20), (3,)),
    "pixels": (pixels, (16, 16), (24, 20), (3,)),
    "audio": (audio, (16,), (24,), (6,)),
    "tokens": (tokens, (16,), (24,), ()),
}


def free_model(kind):
    """A model of a kind without known sizes."""
    make, size, _, _ = KINDS[kind]
    return make(*[None] * len(size))


def shapes(kind):
    """Two shapes of its inputs, without the batch axis."""
    _, *sizes, rest = KINDS[kind]
    return [(*size, *rest) for size in sizes]


def samples(kind, shape, count=16):
    """Inputs of a shape, and labels."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(count, *shape)).astype("float32")
    if kind == "tokens":
        inputs = rng.integers(0, 20, (count, *shape)).astype("int32")
    per_label = shape[:-1] if kind == "pixels" else ()
    return inputs, rng.integers(0, 4, (count, *per_label))


class TwoSizes(keras.utils.PyDataset):
    """Batches of both shapes in turn."""

    def __init__(self, kind, steps=4):
        super().__init__()
        self.batches = [samples(kind, shape, 8) for shape in shapes(kind)]
        self.steps = steps

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        return self.batches[index % 2]
