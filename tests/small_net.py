"""The network that most tests of schemes train."""

import keras
from keras import layers


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
