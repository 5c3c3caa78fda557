"""Ternary networks for segmentation and for text: `python -m benchmarks.tasks NAME`.

NAME is "segmentation" or "text". A float network is trained, then a ternary student of
it. Both are measured on the same test data, in Keras and in LiteRT. The report is
written to `--output`.

The segmentation finds the strokes of digits of `mnist5k` that are shifted on noise. The
text task tells which installed package a sentence of a docstring belongs to; its test
sentences come from files of their own.
"""

import argparse
import ast
import collections
import dataclasses
import importlib.util
import json
import pathlib
import re
import tempfile
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

import tfcompress as tfc
from recipes.common.data import load

CANVAS = 40
PACKAGES = ("numpy", "scipy", "sklearn", "matplotlib", "pandas", "keras")
SENTENCES = 3000
VOCABULARY = 4000
LENGTH = 24


@dataclasses.dataclass(frozen=True)
class Task:
    """Data, network and measure of a task.

    Attributes:
        train, test: `(inputs, targets)`. Arrays (samples, ...).
        model: `keras.Model`. Not trained.
        loss: Keras loss.
        measure: function of `(outputs, targets)`. Returns a share, 1 at best.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    model: keras.Model
    loss: keras.losses.Loss
    measure: Callable[[np.ndarray, np.ndarray], float]


def segmentation(seed):
    """Returns the task of finding a digit's strokes on a noisy canvas."""
    data = load("mnist5k")
    rng = np.random.default_rng(seed)
    return Task(
        _shifted(data.train_images, rng),
        _shifted(data.test_images, rng),
        u_net(),
        keras.losses.BinaryCrossentropy(from_logits=True),
        intersection_over_union,
    )


def u_net():
    """Returns a U-Net of logits with two transposed convolutions."""
    x = inputs = keras.Input((CANVAS, CANVAS, 1))
    skips = []
    for filters in (8, 16):
        x = _convolution(x, filters)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = _convolution(x, 32)
    for filters, skip in zip((16, 8), reversed(skips), strict=True):
        x = layers.Conv2DTranspose(filters, 2, strides=2)(x)
        x = _convolution(layers.Concatenate()([skip, x]), filters)
    return keras.Model(inputs, layers.Conv2D(1, 1, name="logits")(x), name="u_net")


def _convolution(x, filters):
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def _shifted(images, rng):
    """Digits at random places of a noisy canvas, and masks of their strokes."""
    digits = np.zeros((len(images), CANVAS, CANVAS, 1), "float32")
    for digit, canvas in zip(images, digits, strict=True):
        y, x = rng.integers(CANVAS - 28 + 1, size=2)
        canvas[y : y + 28, x : x + 28] = digit / 255
    strength = rng.uniform(0.5, 1, (len(images), 1, 1, 1))
    noise = rng.normal(scale=0.4, size=digits.shape)
    return (digits * strength + noise).astype("float32"), digits > 0.5


def intersection_over_union(logits, masks):
    """Returns the mean over images of intersection over union of the strokes."""
    found = logits > 0
    both = (found & masks).sum((1, 2, 3))
    return float(np.mean(both / (found | masks).sum((1, 2, 3))))


def text(seed):
    """Returns the task of telling a sentence's package."""
    rng = np.random.default_rng(seed)
    train, test = [], []
    for label, package in enumerate(PACKAGES):
        for sentences, part in zip(
            _sentences(package, rng), (train, test), strict=True
        ):
            part.extend((sentence, label) for sentence in sentences)
    counts = collections.Counter(word for words, _ in train for word in words)
    common = [word for word, _ in counts.most_common(VOCABULARY - 2)]
    # 0 fills up, and 1 is any other word.
    number = {word: i for i, word in enumerate(common, start=2)}
    x = inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 32, mask_zero=True)(x)
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(32, activation="relu")(x)
    model = keras.Model(inputs, layers.Dense(len(PACKAGES))(x), name="text")
    return Task(
        _numbered(train, number, rng),
        _numbered(test, number, rng),
        model,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        lambda logits, labels: float(np.mean(logits.argmax(-1) == labels)),
    )


def _sentences(package, rng):
    """Sentences of a package's docstrings as lists of words, from two sets of files."""
    folder = pathlib.Path(importlib.util.find_spec(package).origin).parent
    files = sorted(folder.rglob("*.py"))
    rng.shuffle(files)
    parts = ([], [])
    for i, file in enumerate(files):
        wanted = parts[i % 5 == 0]
        for node in ast.walk(ast.parse(file.read_text(errors="ignore"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                wanted.extend(_words(ast.get_docstring(node) or "", package))
    sizes = SENTENCES, SENTENCES // 5
    return [
        [part[i] for i in rng.permutation(len(part))[:size]]
        for part, size in zip(parts, sizes, strict=True)
    ]


def _words(docstring, package):
    """Sentences of six words or more, without the name of the package."""
    for sentence in re.split(r"[.:]\s|\n\n", docstring):
        words = re.findall(r"[a-z]+", sentence.lower())
        words = [word for word in words if word != package]
        if len(words) >= 6:
            yield words


def _numbered(pairs, number, rng):
    x = np.zeros((len(pairs), LENGTH), "int32")
    for row, (words, _) in zip(x, pairs, strict=True):
        numbers = [number.get(word, 1) for word in words[:LENGTH]]
        row[: len(numbers)] = numbers
    order = rng.permutation(len(pairs))
    return x[order], np.array([label for _, label in pairs])[order]


TASKS = {"segmentation": segmentation, "text": text}


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--epochs", type=int, default=12, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="the JSON file to write")
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    report = {**vars(options), **measure(TASKS[options.task](options.seed), options)}
    print(json.dumps(report, indent=2))
    if options.output:
        pathlib.Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


def measure(task, options):
    """Trains both networks, and returns the measures and sizes."""
    train(task, task.model, 3e-3, options.epochs)
    student = tfc.compress(task.model, tfc.PrunedTernary())
    plan = tfc.plan(task.model, tfc.PrunedTernary())
    treated = sum(row.layer.count_params() for row in plan.treated())
    train(task, student, 1e-3, options.epochs)
    inputs, targets = task.test
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.tflite"
        tiny = tfc.finalize(student)
        exported = tfc.export(tiny, path, verify=inputs[:64])
        outputs = tfc.litert.predict(path, inputs)
    return {
        "float": task.measure(task.model.predict(inputs, verbose=0), targets),
        "ternary": task.measure(student.predict(inputs, verbose=0), targets),
        "ternary_litert": task.measure(outputs, targets),
        "weights_treated": treated / task.model.count_params(),
        "size": exported["size"],
        "train_samples": len(task.train[0]),
        "test_samples": len(inputs),
    }


def train(task, model, learning_rate, epochs, batch_size=64):
    """Trains a model of a task by Adam, with a rate that ends at 0."""
    inputs, targets = task.train
    steps = epochs * -(-len(inputs) // batch_size)
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(keras.optimizers.Adam(rate), task.loss)
    model.fit(inputs, targets, batch_size=batch_size, epochs=epochs, verbose=2)


if __name__ == "__main__":
    main()
