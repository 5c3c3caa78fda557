"""All of `keras.applications` with each scheme: `python -m benchmarks.zoo [--flags]`.

Takes the smallest model of each family, with random weights and a small image size,
through `plan`, `compress`, a `fit` of two steps, `finalize` and a verified `export`.
Each model and scheme has a process of its own. Prints a Markdown table of the CPU
seconds of each part, the share of all weights that are compressed, and the largest
difference between Keras and LiteRT, relative to the largest output. With quantized
activations single values round to another level, which moves predictions: the proof of
`export` compares them on equal levels. "Constant outputs" do not depend on the inputs
after two steps; their difference to LiteRT says little.

A result is one of

- works.
- refused: the library raised an error of its own that says why.
- crashed: any other error, the end of the process, or a loss or output that is NaN.
- timeout: the process computed for more than --limit seconds.

With --output the results are written after each process, and those that are in the file
already are not measured again.
"""

import json
import pathlib
import re
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from benchmarks import common
from recipes.common.arguments import refuse_arguments

FLAGS = flags.FLAGS
STEPS, BATCH_SIZE = 2, 4
# Images are so many times as large as the smallest legal ones, in which the last layers
# see one pixel. Batch normalization then has a handful of values per channel, and the
# model amplifies differences in the last bit of its inputs up to the limits of the
# proof.
SIZE_FACTOR = 2
PARTS = ("plan", "compress", "fit", "finalize", "export")
PACKAGE = pathlib.Path(tfc.__file__).parent
# A process that waits, and computes nothing, ends after so many times --limit.
WALL_CLOCK = 4

flags.DEFINE_string(
    "only", "", "Regular expression that is found in 'MODEL SCHEME' of those to run."
)
flags.DEFINE_integer("limit", 300, "CPU seconds of a process.", lower_bound=1)
flags.DEFINE_string("output", None, "A .json file of finished results.")
flags.DEFINE_bool("retry", False, "Run those again that did not work.")
flags.DEFINE_string(
    "one", None, "'MODEL SCHEME' to run in this process. The program itself uses it."
)


class Progress:
    """Results of one model and scheme, printed as JSON as soon as they are known."""

    def __init__(self):
        self.part = None

    def run(self, part, function, *args):
        """Returns `function(*args)`, and prints its CPU seconds."""
        self.part = part
        self.tell(begun=part)
        result, seconds = common.cpu_seconds(function, *args)
        self.tell(**{part: round(seconds, 2)})
        return result

    def tell(self, **results):
        """Prints results, by their names."""
        print(json.dumps(results), flush=True)


def run_one(name, scheme_name):
    """Takes a model through all parts, and prints what comes of it."""
    progress = Progress()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            take_through(progress, name, common.SCHEMES[scheme_name]())
        progress.tell(result="works")
    except Exception as error:
        traceback.print_exc()
        result = "refused" if is_own(error) else "crashed"
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}"
        progress.tell(result=result, reason=f"in {progress.part}: {reason}")
    progress.tell(warnings=sorted({str(warning.message) for warning in caught}))


def is_own(error):
    """Returns whether a statement of this library raised an error on purpose."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    is_inside = PACKAGE in pathlib.Path(frame.filename).parents
    return is_inside and isinstance(error, (ValueError, TypeError, ImportError))


def take_through(progress, name, scheme):
    """Compresses, trains, finalizes and exports a model."""
    keras.utils.set_random_seed(0)
    size = SIZE_FACTOR * common.APPLICATIONS[name]
    model = common.application(name, size, classifier_activation=None)
    progress.tell(weights=model.count_params(), image_size=size)
    images, labels = common.random_batch(model, STEPS * BATCH_SIZE)
    plan = progress.run("plan", tfc.plan, model, scheme)
    progress.tell(compressed_share=compressed_share(plan), kept=kept_weights(plan))
    student = progress.run("compress", tfc.compress, model, scheme)
    common.compile_classifier(student, images, keras.optimizers.Adam(1e-4))
    progress.run("fit", fit, student, images, labels)
    tiny = progress.run("finalize", tfc.finalize, student)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        report = progress.run("export", export, tiny, path, images)
        file_bytes = path.stat().st_size
    outputs = tiny.predict(images, verbose=0)
    largest = float(np.abs(outputs).max()) or 1.0
    progress.tell(
        difference=report["agreement"]["max_abs_diff"] / largest,
        is_constant=bool(np.ptp(outputs, axis=0).max() == 0),
        bytes=file_bytes,
    )


def fit(student, images, labels):
    """Trains two steps.

    Raises:
        FloatingPointError: if a loss is not finite.
    """
    logs = student.fit(images, labels, batch_size=BATCH_SIZE, verbose=0).history
    if not np.isfinite(logs["loss"]).all():
        raise FloatingPointError(f"The loss is not finite: {logs['loss']}.")


def export(tiny, path, images):
    """Returns the report of `tfc.export`, verified on the images."""
    return tfc.export(tiny, path, verify=images)


def compressed_share(plan):
    """Returns the share of a model's weights that are in compressed kernels."""
    kernels = sum(int(np.prod(row.layer.kernel.shape)) for row in plan.treated())
    return kernels / plan.model.count_params()


def kept_weights(plan):
    """Returns `{"Type: reason": weights}` of the layers that are left alone."""
    kept = {}
    for row in plan.rows:
        if row.config is None and row.layer.count_params():
            key = f"{type(row.layer).__name__}: {row.reason}"
            kept[key] = kept.get(key, 0) + row.layer.count_params()
    return kept


def run_in_new_process(name, scheme):
    """Returns the results of `run_one`, a dict, also where its process ends early."""
    command = [sys.executable, "-m", "benchmarks.zoo", f"--one={name} {scheme}"]
    limits = (FLAGS.limit, FLAGS.limit + 10)
    with tempfile.TemporaryFile("w+") as errors:
        try:
            child = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                timeout=WALL_CLOCK * FLAGS.limit,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, limits),
            )
            printed, code = child.stdout, child.returncode
        except subprocess.TimeoutExpired as error:
            printed, code = error.stdout or b"", -signal.SIGXCPU
        errors.seek(0)
        said = errors.read()[-3000:]
    row = {"model": name, "scheme": scheme}
    for line in printed.decode().splitlines():
        if line.startswith("{"):
            row.update(json.loads(line))
    part = row.pop("begun", "making the model")
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        row.update(result="timeout", reason=f"in {part}")
    elif code or "result" not in row:
        row.update(result="crashed", reason=f"in {part}: exit status {code}")
    if row["result"] != "works":
        row["stderr"] = said
    return row


def table_row(row):
    """Returns a line of the Markdown table."""
    seconds = [f"{row[part]:.0f}" if part in row else "" for part in PARTS]
    whole = sum(row.get(part, 0) for part in PARTS)
    share, difference = row.get("compressed_share"), row.get("difference")
    cells = [
        row["model"],
        row["scheme"],
        row["result"],
        *seconds,
        f"{whole:.0f}",
        "" if share is None else f"{100 * share:.1f} %",
        "" if difference is None else f"{difference:.0e}",
    ]
    if row.get("is_constant"):
        cells[-1] += " (constant outputs)"
    return f"| {' | '.join(cells)} |"


def report(rows):
    """Returns the Markdown table, then the reasons of rows that do not work."""
    lines = [
        f"| Model | Scheme | Result | {' | '.join(PARTS)} | together | Compressed "
        "| Difference |",
        f"|{'---|' * (len(PARTS) + 6)}",
        *map(table_row, rows),
        "",
    ]
    lines += [
        f"- {row['model']}, {row['scheme']}: {row['result']} {row['reason']}"
        for row in rows
        if row["result"] != "works"
    ]
    return "\n".join(lines)


def main(argv):
    refuse_arguments(argv)
    if FLAGS.one:
        run_one(*FLAGS.one.split())
        return
    output = FLAGS.output and pathlib.Path(FLAGS.output)
    rows = json.loads(output.read_text()) if output and output.exists() else []
    if FLAGS.retry:
        rows = [row for row in rows if row["result"] == "works"]
    finished = {(row["model"], row["scheme"]) for row in rows}
    for name in common.APPLICATIONS:
        for scheme in common.SCHEMES:
            is_asked_for = re.search(FLAGS.only, f"{name} {scheme}")
            if not is_asked_for or (name, scheme) in finished:
                continue
            rows.append(run_in_new_process(name, scheme))
            print(table_row(rows[-1]), flush=True)
            if output:
                output.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"\n{report(rows)}")


if __name__ == "__main__":
    app.run(main)
