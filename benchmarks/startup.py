"""Costs of a short training: `python -m benchmarks.startup [--flags]`.

Follows a model from `tfc.compress` to the `.tflite`, once for each scheme. Each part is
compared with the same part for the plain model, in turns in one process:

- compress: `plan` and `compress`, relative to `clone_model` and copied weights.
- fit: a whole `fit` of a few steps, tracing included, relative to the plain one.
- start: the time of that `fit` before its first step, less that of the plain `fit`, as
  a number of steps of the plain model.
- step: the median time from the beginning of a step to that of the next, with what a
  search does in between. `benchmarks.step_time` times steps alone.
- memory: the peak of the resident set in `fit`, less the resident set before the model
  was made, relative to the plain one. Each is measured in a process of its own, on
  Linux. Memory that the allocator retains counts.
- file: `finalize` and `export` with its proof, relative to the plain conversion.

Times are CPU seconds of all threads (`time.process_time`), since other work on the
machine hardly changes them. A network of three layers goes all the way first, so that
imports and first calls do not count. Prints a Markdown table; each cell has the ratio,
and the student's number in brackets.
"""

import gc
import json
import pathlib
import tempfile
import time

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from benchmarks import common
from recipes.common import models
from recipes.common.arguments import refuse_arguments
from tfcompress.litert import float_tflite

FLAGS = flags.FLAGS
PLAIN = "plain"
SCHEMES = {
    **common.SCHEMES,
    "BitSharing without a search": lambda: tfc.BitSharing("1/60", search_fraction=0),
}
TABLE_HEAD = (
    "| Scheme | compress | fit | start | step | memory | file |\n"
    "|---|---|---|---|---|---|---|"
)

flags.DEFINE_string(
    "model",
    "mobilenet",
    "'mobilenet' (MobileNet of a quarter of the channels, 96 x 96 images, 2 classes), "
    "the name of a network in keras.applications, or the path of a "
    f"{' or '.join(models.MODEL_SUFFIXES)} file.",
)
flags.DEFINE_integer(
    "image_size", None, "Height and width of a network in keras.applications."
)
flags.DEFINE_multi_enum(
    "schemes",
    list(SCHEMES),
    list(SCHEMES),
    "Schemes to measure; repeat the flag for several.",
)
flags.DEFINE_integer("batch_size", 8, "Images per step.", lower_bound=1)
flags.DEFINE_integer("steps", 8, "Steps per epoch.", lower_bound=2)
flags.DEFINE_integer("epochs", 2, "Epochs of each fit.", lower_bound=1)
flags.DEFINE_string("output", None, "A .json file to write all numbers to.")
flags.DEFINE_enum(
    "memory_of",
    None,
    [PLAIN, *SCHEMES],
    "Only print the bytes that a fit takes at its peak. The program itself uses it.",
)


class StepStarts(keras.callbacks.Callback):
    """Callback that notes the CPU seconds at which each step begins.

    Attributes:
        seconds: list of float.
    """

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seconds.append(time.process_time())


def make_model():
    """Returns the plain model that the flags ask for."""
    keras.utils.set_random_seed(0)
    if FLAGS.model == "mobilenet":
        return common.application("MobileNet", 96, classes=2, alpha=0.25)
    return common.application_or_file(FLAGS.model, FLAGS.image_size)


def make(kind, model):
    """Returns a copy of a model, or a student of the scheme that `kind` names."""
    if kind == PLAIN:
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        return copy
    scheme = SCHEMES[kind]()
    tfc.plan(model, scheme)
    return tfc.compress(model, scheme)


def fit(model, images, labels):
    """Trains a model for the epochs of the flags.

    Returns:
        `(CPU seconds in all, those before the first step, those of a step)`. The last
        is a median, from the beginning of a step to that of the next.
    """
    common.compile_classifier(model, images, keras.optimizers.Adam(1e-4))
    starts = StepStarts()
    begun = time.process_time()
    model.fit(
        images,
        labels,
        batch_size=FLAGS.batch_size,
        epochs=FLAGS.epochs,
        verbose=0,
        callbacks=[starts],
    )
    passed = time.process_time() - begun
    return passed, starts.seconds[0] - begun, float(np.median(np.diff(starts.seconds)))


def write_file(kind, model, images):
    """Converts a trained plain model, or finalizes and exports a student."""
    if kind == PLAIN:
        float_tflite(model)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        tfc.export(tfc.finalize(model), path, verify=images)


def measure_seconds(kind, model, images, labels):
    """Returns the CPU seconds of each part, a dict."""
    made, compress = common.cpu_seconds(make, kind, model)
    whole, start, step = fit(made, images, labels)
    _, file = common.cpu_seconds(write_file, kind, made, images[: FLAGS.batch_size])
    return {
        "compress": compress,
        "fit": whole,
        "start": start,
        "step": step,
        "file": file,
    }


def warm_up():
    """Takes a network of three layers through all parts."""
    tiny = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3),
            keras.layers.Conv2D(8, 3),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )
    batch = common.random_batch(tiny, 2 * FLAGS.batch_size)
    for kind in (PLAIN, "PrunedTernary"):
        measure_seconds(kind, tiny, *batch)


def peak_of_fit(kind):
    """Returns the bytes that a model of the kind and its `fit` take at their peak."""
    warm_up()
    gc.collect()
    before = common.resident_set("VmRSS")
    model = make_model()
    images, labels = common.random_batch(model, FLAGS.steps * FLAGS.batch_size)
    made = make(kind, model)
    del model
    gc.collect()
    common.reset_peak()
    fit(made, images, labels)
    return common.resident_set("VmHWM") - before


def measure(scheme, model, images, labels, plain_bytes):
    """Returns `{"scheme", "plain", "student"}` of one scheme, seconds and bytes."""
    row = {"scheme": scheme}
    for name, kind in (("plain", PLAIN), ("student", scheme)):
        row[name] = measure_seconds(kind, model, images, labels)
        keras.utils.clear_session()
    row["plain"]["memory"] = plain_bytes
    row["student"]["memory"] = memory_in_new_process(scheme)
    return row


def memory_in_new_process(kind):
    """Returns `peak_of_fit(kind)`, measured in a new process."""
    return int(common.last_word_of_new_process("startup", f"--memory_of={kind}"))


def table_row(row):
    """Returns a line of the Markdown table: each ratio, and the student's number."""
    plain, student = row["plain"], row["student"]
    ratio = {name: student[name] / plain[name] for name in plain}
    started = student["start"] - plain["start"]
    cells = [
        row["scheme"],
        f"{ratio['compress']:.1f} ({student['compress']:.1f} s)",
        f"{ratio['fit']:.1f} ({student['fit']:.1f} s)",
        f"{started / plain['step']:.0f} steps ({started:.1f} s)",
        f"{ratio['step']:.2f} ({1e3 * student['step']:.0f} ms)",
        f"{ratio['memory']:.2f} ({student['memory'] / 2**20:.0f} MiB)",
        f"{ratio['file']:.1f} ({student['file']:.1f} s)",
    ]
    return f"| {' | '.join(cells)} |"


def main(argv):
    refuse_arguments(argv)
    if FLAGS.memory_of:
        print(peak_of_fit(FLAGS.memory_of))
        return
    model = make_model()
    images, labels = common.random_batch(model, FLAGS.steps * FLAGS.batch_size)
    print(
        f"{model.name}, {model.count_params():,} parameters, input "
        f"{model.inputs[0].shape[1:]}, batch {FLAGS.batch_size}, "
        f"{FLAGS.epochs} x {FLAGS.steps} steps",
        flush=True,
    )
    warm_up()
    plain_bytes = memory_in_new_process(PLAIN)
    rows = []
    for scheme in FLAGS.schemes:
        rows.append(measure(scheme, model, images, labels, plain_bytes))
        print(table_row(rows[-1]), flush=True)
    print(f"\n{TABLE_HEAD}")
    print("\n".join(map(table_row, rows)))
    if FLAGS.output:
        result = {"model": model.name, "parameters": model.count_params(), "rows": rows}
        pathlib.Path(FLAGS.output).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
