"""Table of every layer in every scheme and every file: `python -m benchmarks.layers`.

A small network holds each layer between dense ones. The first table has the share of
the layer's weights that each scheme treats. The second has the types of the layer's
kernels in each file of a student with 4 bits, which the export has proven, or why there
is no such file. `--output=docs/layers.md` writes both below the text of that page.
"""

import argparse
import collections
import pathlib
import sys
import tempfile

import keras
import numpy as np
from keras import layers

import tfcompress as tfc

# Budgets that can be met in all of the small networks.
SCHEMES = {
    "PrunedTernary": lambda: tfc.PrunedTernary(),
    "SizeConstrained": lambda: tfc.SizeConstrained(value_bits="1/10"),
    "BitSharing": lambda: tfc.BitSharing(penalty=0.1, group_size=2),
    "Decomposition": lambda: tfc.Decomposition("999/1000"),
}
# `(layer, shape of its input)`; a shape without channels is one of token numbers.
LAYERS = {
    "Dense": (lambda: layers.Dense(8), (12,)),
    "EinsumDense": (
        lambda: layers.EinsumDense("abc,cde->abde", (6, 2, 4), bias_axes="de"),
        (6, 8),
    ),
    "Conv1D": (lambda: layers.Conv1D(8, 3), (12, 4)),
    "Conv2D": (lambda: layers.Conv2D(8, 3), (8, 8, 4)),
    "Conv3D": (lambda: layers.Conv3D(8, 3), (4, 6, 6, 4)),
    "Conv1DTranspose": (lambda: layers.Conv1DTranspose(8, 3, strides=2), (6, 4)),
    "Conv2DTranspose": (lambda: layers.Conv2DTranspose(8, 3, strides=2), (6, 6, 4)),
    "Conv3DTranspose": (lambda: layers.Conv3DTranspose(8, 3), (4, 4, 4, 4)),
    "DepthwiseConv1D": (lambda: layers.DepthwiseConv1D(3), (12, 8)),
    "DepthwiseConv2D": (lambda: layers.DepthwiseConv2D(3), (8, 8, 8)),
    "SeparableConv1D": (lambda: layers.SeparableConv1D(8, 3), (12, 4)),
    "SeparableConv2D": (lambda: layers.SeparableConv2D(8, 3), (8, 8, 4)),
    "Embedding": (lambda: layers.Embedding(64, 8), (6,)),
    "MultiHeadAttention": (
        lambda: SelfAttention(layers.MultiHeadAttention(2, 8, name="inner")),
        (6, 16),
    ),
    "GroupQueryAttention": (
        lambda: SelfAttention(layers.GroupQueryAttention(8, 4, 2, name="inner")),
        (6, 16),
    ),
    "SimpleRNN": (lambda: layers.SimpleRNN(8), (6, 8)),
    "LSTM": (lambda: layers.LSTM(8), (6, 8)),
    "GRU": (lambda: layers.GRU(8), (6, 8)),
    "Bidirectional(LSTM)": (lambda: layers.Bidirectional(layers.LSTM(8)), (6, 8)),
    "ConvLSTM1D": (lambda: layers.ConvLSTM1D(4, 3), (4, 8, 2)),
    "ConvLSTM2D": (lambda: layers.ConvLSTM2D(4, 3), (4, 8, 8, 2)),
    "TimeDistributed(Conv2D)": (
        lambda: layers.TimeDistributed(layers.Conv2D(8, 3)),
        (3, 8, 8, 4),
    ),
    "SpectralNormalization(Conv2D)": (
        lambda: layers.SpectralNormalization(layers.Conv2D(8, 3)),
        (8, 8, 4),
    ),
}
TOKENS = ("Embedding",)
# Layers before and after the one that is looked at.
ENDS = ("start", "end")
FILES = {
    "size": {"optimize": "size"},
    "balanced": {"optimize": "balanced"},
    "latency": {"optimize": "latency"},
    "latency, int8": {"optimize": "latency", "activations": "int8"},
    "microcontroller": {"target": "micro"},
}


class SelfAttention(layers.Layer):
    """Attention of a sequence to itself."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def get_config(self):
        return {**super().get_config(), "inner": self.inner}

    def build(self, input_shape):
        self.inner.build(input_shape, input_shape)

    def call(self, inputs):
        return self.inner(inputs, inputs)


class Notes:
    """Footnotes, each of which has one number."""

    def __init__(self):
        self.texts = {}

    def add(self, text):
        """Returns the mark of a footnote."""
        number = self.texts.setdefault(" ".join(text.split()), len(self.texts) + 1)
        return f"[{number}]"

    def __str__(self):
        return "\n".join(f"- [{n}] {text}" for text, n in self.texts.items())


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers")
    parser.add_argument("names", nargs="*", help="layers; all by default")
    parser.add_argument("--output", help="Markdown page whose tables are replaced")
    options = parser.parse_args()
    schemes, files, notes = [], [], Notes()
    for name in options.names or LAYERS:
        schemes.append(
            [name, *(treated(name, make, notes) for make in SCHEMES.values())]
        )
        files.append([name, *in_files(name, notes)])
        print(schemes[-1], files[-1], file=sys.stderr, flush=True)
    page = "\n\n".join(
        [
            table(["layer", *SCHEMES], schemes),
            table(["layer", *FILES], files),
            str(notes),
        ]
    )
    print(page)
    if options.output:
        path = pathlib.Path(options.output)
        text = path.read_text().partition("\n| layer")[0]
        path.write_text(f"{text}\n{page}\n")


def network(name):
    """Returns a network with a layer, and samples for it."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    make, shape = LAYERS[name]
    if name in TOKENS:
        x = inputs = keras.Input(shape, dtype="int32")
        samples = rng.integers(0, 64, (16, *shape)).astype("int32")
    else:
        inputs = keras.Input(shape)
        x = layers.Dense(shape[-1], activation="relu", name=ENDS[0])(inputs)
        samples = rng.normal(size=(16, *shape)).astype("float32")
    x = layers.Flatten()(make()(x))
    return keras.Model(inputs, layers.Dense(4, name=ENDS[1])(x)), samples


def treated(name, make_scheme, notes):
    """Returns the share of the layer's weights that a scheme treats, as text."""
    model, _ = network(name)
    try:
        plan = tfc.plan(model, make_scheme())
    except ValueError as error:
        return f"refused {notes.add(str(error))}"
    rows = [row for row in plan.rows if row.name not in ENDS]
    whole = sum(row.layer.count_params() for row in rows)
    share = sum(row.layer.count_params() for row in rows if row.config) / whole
    left = [row for row in rows if not row.config and row.layer.count_params()]
    marks = "".join(dict.fromkeys(notes.add(row.reason) for row in left))
    return f"{share:.2f} {marks}".strip()


def in_files(name, notes):
    """Returns the types of the layer's kernels in each file, as texts."""
    model, samples = network(name)
    try:
        student = tfc.compress(model, tfc.Uniform(4))
    except ValueError as error:
        return [f"refused {notes.add(str(error))}"] * len(FILES)
    student.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    student.fit(samples, np.zeros(len(samples)), verbose=0)
    tiny = tfc.finalize(student)
    return [in_file(tiny, samples, options, notes) for options in FILES.values()]


def in_file(tiny, samples, options, notes):
    is_integer = "int8" in options.values() or "micro" in options.values()
    data = {"representative_data": samples} if is_integer else {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = tfc.export(
                tiny, f"{folder}/model.tflite", verify=samples, **options, **data
            )
        except ValueError as error:
            return f"refused {notes.add(str(error))}"
    types = collections.Counter(
        row.get("type") or row["encoding"]
        for row in report["tensors"]
        if not {row.get("layer"), row.get("tensor")} & set(ENDS)
    )
    return ", ".join(sorted(types)) or "float32"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
