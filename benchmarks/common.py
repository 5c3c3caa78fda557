"""Networks, schemes, data and measurements that several benchmarks share."""

import pathlib
import re
import subprocess
import sys
import time

import keras
import numpy as np

import tfcompress as tfc
from recipes.common import models
from recipes.common.train import jit_compile

# Smallest model of each family in `keras.applications`, and a small legal image size.
APPLICATIONS = {
    "ConvNeXtTiny": 32,
    "DenseNet121": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "InceptionResNetV2": 75,
    "InceptionV3": 75,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "NASNetMobile": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "VGG16": 32,
    "Xception": 71,
}
# Functions, since a scheme may not be shared by two students.
SCHEMES = {
    "PrunedTernary": lambda: tfc.PrunedTernary(),
    "SizeConstrained": lambda: tfc.SizeConstrained("1/20"),
    "Decomposition": lambda: tfc.Decomposition("1/2"),
    "BitSharing": lambda: tfc.BitSharing("1/60"),
}


def application(name, image_size=None, classes=10, **options):
    """Returns a network of `keras.applications` with random weights.

    Args:
        name: str. Name of its function, such as "MobileNetV2".
        image_size: int or None. Height and width; None takes that of `APPLICATIONS`.
        classes: int. Number of classes.
        options: arguments of the function.

    Raises:
        ValueError: if there is no such network, or none of that size.
    """
    make = getattr(keras.applications, name, None)
    if not callable(make) or not (image_size or name in APPLICATIONS):
        raise ValueError(
            "The name of a network in `keras.applications` is expected, and an image "
            f"size unless it is one of {', '.join(APPLICATIONS)}. Received: {name!r}, "
            f"image size {image_size}."
        )
    size = image_size or APPLICATIONS[name]
    return make(weights=None, input_shape=(size, size, 3), classes=classes, **options)


def application_or_file(name, image_size=None):
    """Returns `application(name, image_size)`, or the model of a file."""
    if name.endswith(models.MODEL_SUFFIXES):
        return models.load_file(name)
    return application(name, image_size)


def random_batch(model, samples):
    """Returns random images and labels for a classifier, arrays (samples, ...).

    Images are about -1..1, or pixels where the model scales its inputs itself: others
    would all look the same to it.
    """
    random = np.random.default_rng(0)
    shape = (samples, *model.inputs[0].shape[1:])
    images = random.normal(size=shape).astype("float32")
    scaling = (keras.layers.Rescaling, keras.layers.Normalization)
    if any(isinstance(layer, scaling) for layer in model.layers):
        images = 128 + 64 * images
    return images, random.integers(model.outputs[0].shape[-1], size=samples)


def compile_classifier(model, images, optimizer):
    """Compiles a classifier with cross-entropy, as the recipes do, and returns it.

    Args:
        model: image classifier that ends in logits or probabilities.
        images: float32 (samples, height, width, channels).
        optimizer: Keras optimizer.
    """
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=models.outputs_logits(model, images)
        ),
        jit_compile=jit_compile(),
    )
    return model


def cpu_seconds(function, *args):
    """Returns `(function(*args), seconds)`.

    Seconds are those that all threads of this process computed. Other work on the
    machine hardly changes them, while wall-clock time doubles with every neighbor.
    """
    start = time.process_time()
    result = function(*args)
    return result, time.process_time() - start


def resident_set(field):
    """Returns the resident bytes of this process: "VmRSS" now, "VmHWM" at the peak."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])


def reset_peak():
    """Resets the peak of the resident set of this process."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def last_word_of_new_process(module, *arguments):
    """Returns the last word that `python -m benchmarks.MODULE` prints.

    The flags are those of this process, then `arguments`.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *sys.argv[1:], *arguments]
    child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return child.stdout.split()[-1]
