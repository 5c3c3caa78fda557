"""Bytes, arena and latency of the files for phones, and of stock files.

`python -m benchmarks.devices.phones resnet8 MobileNetV2 ResNet50` takes names of
built-in networks, of networks of `keras.applications`, or `.keras` and `.h5` files. It
quantizes the weights of all layers to 4 and to 2 bits, without training, and exports in
all ways. The other files are the float file and those of litert-quantizer: int8
throughout, and INT4 kernels with float activations.

Latency is on one thread, one sample at a time. The runs of all files of a network
alternate in one process, and medians are compared. It prints a Markdown table for each
network, and writes `phones.json`.
"""

import importlib.metadata
import json
import pathlib
import sys
import tempfile

import keras
from litert_quantizer import quantizer, recipe

import tfcompress as tfc
from benchmarks.common import application, random_batch
from benchmarks.devices.operator_costs import machine
from recipes.common import models
from tfcompress.cost.arithmetic import xz_bytes
from tfcompress.layers.registry import forms_of
from tfcompress.litert import float_tflite, latency, peak_memory
from tfcompress.litert.integer.static_int8 import quantized_tflite
from tfcompress.litert.proof.samples import Samples

RUNS = 60
SAMPLES = 8
IMAGE_SIZE = 224
MODES = {
    "size": {"optimize": "size"},
    "latency, float": {"optimize": "latency"},
    "balanced, float": {"optimize": "balanced"},
    "latency, int8": {"optimize": "latency", "activations": "int8"},
    "latency 1.3, int8": {
        "optimize": "latency",
        "activations": "int8",
        "allowance": 1.3,
    },
    "balanced, int8": {"optimize": "balanced", "activations": "int8"},
}


def main():
    results = [measure(name) for name in sys.argv[1:]]
    content = {
        "litert": importlib.metadata.version("ai-edge-litert"),
        "machine": machine(),
        "runs": RUNS,
        "networks": results,
    }
    pathlib.Path("phones.json").write_text(json.dumps(content, indent=1) + "\n")


def measure(name):
    """Prints the table of a network, and returns its rows with its name."""
    model = network(name)
    images, _ = random_batch(model, SAMPLES)
    with_measured_statistics(model, images)
    float_file = float_tflite(model)
    contents = {
        "float": float_file,
        "stock int8": quantized_tflite(float_file, Samples(model, images)),
        "stock int4": stock_int4(float_file),
    }
    reports = {}
    for bits in (4, 2):
        tiny = tfc.finalize(tfc.compress(model, weights_in(model, bits)))
        for mode, options in MODES.items():
            key = f"{bits} bits, {mode}"
            contents[key], reports[key] = exported(tiny, images, options)
            print(key, len(contents[key]), file=sys.stderr, flush=True)
    times = latency(list(contents.values()), RUNS)
    stock = list(contents).index("stock int8")
    rows = [
        {
            "file": key,
            "bytes": len(content),
            "xz_bytes": xz_bytes(content),
            "arena_bytes": peak_memory(content),
            "bytes_of_int8": round(len(content) / len(contents["stock int8"]), 3),
            "time_of_float": round(spent / times[0], 3),
            "time_of_int8": round(spent / times[stock], 3),
            "predicted": reports.get(key, {}).get("predicted_time"),
        }
        for (key, content), spent in zip(contents.items(), times, strict=True)
    ]
    print(table(name, rows), flush=True)
    return {"network": name, "rows": rows}


def network(name):
    """Returns the network of a name or of a file; untrained ones end in logits."""
    if name.endswith(models.MODEL_SUFFIXES):
        return models.load_file(name)
    if name in ("resnet8", "resnet20"):
        return getattr(models, name)((32, 32, 3), 10)
    return application(name, IMAGE_SIZE, 1000, classifier_activation=None)


def with_measured_statistics(model, images):
    """Sets the statistics of batch normalization to those of some images."""
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def weights_in(model, bits):
    """Returns a scheme that quantizes the weights of all layers, and no activations."""
    config = tfc.QuantizeConfig(tfc.quantizers.Uniform(bits=bits))
    names = [layer.name for layer in model.layers if forms_of(layer)]
    return tfc.Uniform(bits, overrides=dict.fromkeys(names, config))


def exported(tiny, images, options):
    """Returns the content of a file of `tfc.export`, and the report."""
    if "activations" in options:
        options = {**options, "representative_data": images}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        report = tfc.export(tiny, path, verify=images, **options)
        return path.read_bytes(), report


def stock_int4(content):
    """Returns litert-quantizer's file with INT4 kernels and float activations."""
    engine = quantizer.Quantizer(bytearray(content), recipe.dynamic_wi4_afp32())
    return bytes(engine.quantize().quantized_model)


def table(name, rows):
    """Returns the rows of a network as a Markdown table."""
    lines = [
        f"\n{name}\n",
        "| file | bytes | of int8 | after xz | arena | time of float | of int8 |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['file']} | {row['bytes']:,} | {row['bytes_of_int8']:.2f} | "
        f"{row['xz_bytes']:,} | {row['arena_bytes']:,} | {row['time_of_float']:.2f} | "
        f"{row['time_of_int8']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
