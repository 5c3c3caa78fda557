"""Bytes, latency and accuracy of each kind of file of one model.

`python -m benchmarks.artifacts [--flags]` takes a float model, and with `--finalized`
the model that was made from it. It compares the float `.tflite` and the stock files of
litert-quantizer: int8 throughout, and INT4 kernels with float activations. Of a
finalized model also the files of `tfc.export` for size, for latency and balanced, the
latter two with integers throughout as well. It prints a Markdown table and writes
`artifacts.json`.

Latency is relative to the float file, on one thread, one image at a time; runs of all
files alternate in one process. Accuracy is on all test images.
"""

import json
import pathlib
import tempfile

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from benchmarks.devices.operator_costs import machine
from benchmarks.devices.phones import stock_int4
from recipes.common import flags as shared_flags  # noqa: F401 -- --model and others
from recipes.common import models
from recipes.common.arguments import refuse_arguments
from recipes.common.data import load, make_scaling
from recipes.common.train import accuracy
from tfcompress.cost.arithmetic import xz_bytes
from tfcompress.litert import float_tflite, latency, predict
from tfcompress.litert.integer.static_int8 import quantized_tflite
from tfcompress.litert.proof.samples import Samples

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "finalized", None, "The .keras file of a finalized model, if there is one."
)
flags.DEFINE_integer("representative", 256, "Training images to compute ranges from.")
flags.DEFINE_integer("runs", 200, "Timed runs of each file.", lower_bound=1)

MODES = {
    "ours, size": {"optimize": "size"},
    "ours, latency": {"optimize": "latency"},
    "ours, balanced": {"optimize": "balanced"},
    "ours, int8": {"optimize": "latency", "activations": "int8"},
    "ours, balanced, int8": {"optimize": "balanced", "activations": "int8"},
}


def main(argv):
    refuse_arguments(argv)
    if not models.is_file(FLAGS.model):
        raise app.UsageError(
            f"Expected --model to be a file of a float model. Received: {FLAGS.model}."
        )
    float_model = models.load_file(FLAGS.model)
    tiny = keras.models.load_model(FLAGS.finalized) if FLAGS.finalized else None
    image_size = tuple(float_model.inputs[0].shape[1:3])
    data = load(FLAGS.dataset, FLAGS.data_dir, image_size)
    scaling = make_scaling(FLAGS.input_scaling, data.train_images)
    images, labels = scaling(data.test_images), data.test_labels
    chosen = np.linspace(0, len(data.train_images) - 1, FLAGS.representative)
    representative = scaling(data.train_images[chosen.astype(int)])

    float_file = float_tflite(float_model)
    stock = quantized_tflite(float_file, Samples(float_model, representative))
    exported, agreements = {}, {}
    if tiny is not None:
        exported, agreements = export_in_all_modes(tiny, images, representative)
    files = {
        "float": float_file,
        "stock int8": stock,
        "stock int4": stock_int4(float_file),
        **exported,
    }
    times = latency(list(files.values()), FLAGS.runs)
    rows = [
        {
            "file": name,
            "bytes": len(content),
            "xz_bytes": xz_bytes(content),
            "latency_ratio": spent / times[0],
            "accuracy": accuracy(predict(content, images), labels),
            "agreement_with_keras": agreements.get(name),
        }
        for (name, content), spent in zip(files.items(), times, strict=True)
    ]
    result = {
        "model": FLAGS.model and pathlib.Path(FLAGS.model).stem,
        "machine": machine(),
        "runs": FLAGS.runs,
        "test_images": len(labels),
        "rows": rows,
    }
    if tiny is not None:
        result |= {
            "finalized": pathlib.Path(FLAGS.finalized).parent.name,
            "accuracy_in_keras": accuracy(tiny.predict(images, verbose=0), labels),
            # Packed codes, scales and biases, without a graph.
            "packed_bytes": sum(np.array(weight).nbytes for weight in tiny.weights),
        }
    pathlib.Path(FLAGS.output_dir or ".", "artifacts.json").write_text(
        json.dumps(result, indent=2) + "\n"
    )
    print(table(result))


def export_in_all_modes(tiny, images, representative):
    """Returns the contents of the files and the top-1 agreements, by name of the mode.

    Args:
        tiny: finalized `keras.Model`.
        images: float32 (samples, height, width, channels). Inputs to compare on.
        representative: the same, to compute ranges from.
    """
    contents, agreements = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in MODES.items():
            path = pathlib.Path(folder) / "model.tflite"
            if options.get("activations") == "int8":
                options = {**options, "representative_data": representative}
            report = tfc.export(tiny, path, verify=images, **options)
            agreements[name] = report["agreement"]["top1"]
            contents[name] = path.read_bytes()
    return contents, agreements


def table(result):
    """Returns the result as a Markdown table."""
    lines = [
        "| file | bytes | after xz | latency | top-1 | same class as Keras |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        same = row["agreement_with_keras"]
        lines.append(
            f"| {row['file']} | {row['bytes']:,} | {row['xz_bytes']:,} | "
            f"{row['latency_ratio']:.2f} | {100 * row['accuracy']:.2f} | "
            f"{'' if same is None else f'{100 * same:.2f}'} |"
        )
    if "packed_bytes" in result:
        packed = result["packed_bytes"]
        lines.append(f"\nCodes, scales and biases alone: {packed:,} bytes.")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
