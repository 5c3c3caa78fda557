"""Flash, arena and time in TensorFlow Lite Micro: `python -m benchmarks.devices.micro`.

Exports networks for microcontrollers after a few steps of training on random data.
Zeros and levels are those of the scheme; accuracy is not measured. Each file is
compared with the stock int8 file of the float model, by litert-quantizer, in the same
runtime. Prints a Markdown table. With --output the results are written as JSON, where
they replace those of the same networks and schemes.

The last column is the time relative to the stock file. The runtime of the package has
the reference kernels of x86-64: on a device with faster ones decoding weighs more.
"""

import importlib.metadata
import json
import pathlib

import keras
import numpy as np
from absl import app, flags
from keras import layers as kl

import tfcompress as tfc
from recipes.common import models
from recipes.common.arguments import refuse_arguments
from tfcompress.litert import flatbuffer, float_tflite
from tfcompress.litert.integer.static_int8 import quantized_tflite
from tfcompress.micro.arena import least_arena
from tfcompress.micro.runtime import MicroRunner, MicroRuntime, relative_time

FLAGS = flags.FLAGS
SAMPLES = 16
# Timed runs of each file, which take turns.
RUNS = 60
FOLDER = pathlib.Path("build")

flags.DEFINE_string(
    "resnet8", None, "A file of MLPerf Tiny's ResNet-8; random weights without it."
)
flags.DEFINE_list("only", [], "Networks to measure; all by default.")
flags.DEFINE_list("schemes", [], "Schemes to measure; all by default.")
flags.DEFINE_string("arena", None, "Arena of all files, such as '64 kB'.")
flags.DEFINE_string("output", None, "A .json file for the results.")

FOUR_BITS = tfc.QuantizeConfig(tfc.quantizers.Uniform(bits=4))
SCHEMES = (
    "ternary",
    "ternary 80 % zeros",
    "4 bits",
    "4 bits for time",
    "4 bits in 1.6 times the time",
    "30 % of the flash",
)
# Options of `export`.
TIMES = {
    "4 bits for time": {"optimize": "latency"},
    "4 bits in 1.6 times the time": {"optimize": "latency", "allowance": 1.6},
}
# Its first and last layers hold 60 % of the weights, and are ternary too.
TERNARY_ENDS = ("autoencoder",)


def lenet5():
    return models.lenet5((28, 28, 1), 10)


def resnet8():
    if FLAGS.resnet8:
        return models.load_file(FLAGS.resnet8)
    return models.resnet8((32, 32, 3), 10)


def mobilenet():
    """MobileNetV1 of a quarter of the channels, MLPerf Tiny's visual wake words."""
    return keras.applications.MobileNet(
        (96, 96, 3), alpha=0.25, weights=None, classes=2
    )


def mobilenet_v2():
    """MobileNetV2 of 0.35 times the channels, for small images."""
    return keras.applications.MobileNetV2(
        (96, 96, 3), alpha=0.35, weights=None, classes=2
    )


def ds_cnn():
    """Depthwise separable network for keywords in 49 spectra of 10 values."""
    inputs = keras.Input((49, 10, 1))
    x = kl.Conv2D(64, (10, 4), strides=2, padding="same", use_bias=False)(inputs)
    x = kl.ReLU()(kl.BatchNormalization()(x))
    for _ in range(4):
        x = kl.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = kl.ReLU()(kl.BatchNormalization()(x))
        x = kl.Conv2D(64, 1, use_bias=False)(x)
        x = kl.ReLU()(kl.BatchNormalization()(x))
    x = kl.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, kl.Dense(12, activation="softmax")(x), name="ds_cnn")


def autoencoder():
    """Autoencoder of dense layers, MLPerf Tiny's anomaly detection."""
    x = inputs = keras.Input((640,))
    for units in (*4 * (128,), 8, *4 * (128,)):
        x = kl.ReLU()(kl.BatchNormalization()(kl.Dense(units)(x)))
    return keras.Model(inputs, kl.Dense(640)(x), name="autoencoder")


NETWORKS = {
    make.__name__: make
    for make in (lenet5, resnet8, mobilenet, mobilenet_v2, ds_cnn, autoencoder)
}


def stock_int8(model, samples):
    """Content of the int8 file that litert-quantizer makes of a float model.

    Its constants are aligned: the runtime copies others to the arena.
    """
    content = quantized_tflite(float_tflite(model, 1), [[samples]], float_ends=False)
    return flatbuffer.write(flatbuffer.read(content))


def scheme_for(model, name, scheme, stock_bytes):
    """Scheme of a network. Ternary networks have first and last layers of 8 bits."""
    ends = "ternary" if name in TERNARY_ENDS else "8bit"
    if scheme == "30 % of the flash":
        return tfc.SizeConstrained(size=int(0.3 * stock_bytes), target="micro")
    if scheme.startswith("4 bits"):
        rows = tfc.plan(model, tfc.PrunedTernary()).treated()
        return tfc.PrunedTernary(overrides={row.name: FOUR_BITS for row in rows})
    sparsity = 0.8 if scheme == "ternary 80 % zeros" else None
    return tfc.PrunedTernary(sparsity, first_last=ends)


def measure(name, scheme):
    """Measures a network after a scheme, and returns a dict of results."""
    keras.utils.set_random_seed(0)
    model = NETWORKS[name]()
    shape = (SAMPLES, *model.inputs[0].shape[1:])
    samples = np.random.default_rng(0).normal(size=shape).astype("float32")
    if name == "resnet8":  # it takes pixels
        samples = np.clip(128 + 64 * samples, 0, 255)
    stock = stock_int8(model, samples)
    student = tfc.compress(model, scheme_for(model, name, scheme, len(stock)))
    student.compile(keras.optimizers.SGD(1e-4), "mse")
    student.fit(samples, model.predict(samples), batch_size=4, epochs=4)
    tiny = tfc.finalize(student)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / "micro.tflite"
    report = tfc.export(
        tiny, path, samples, representative_data=samples, target="micro",
        arena=FLAGS.arena, **TIMES.get(scheme, {}),
    )  # fmt: skip
    with MicroRuntime() as runtime:
        for key, content in (("stock", stock), ("ours", path.read_bytes())):
            MicroRunner(runtime, content, key)
        time_ratio = relative_time(runtime, ("stock", "ours"), RUNS)
        stock_arena = least_arena(runtime, stock)
    micro = report["micro"]
    return {
        "network": name,
        "scheme": scheme,
        "stock": {"flash": len(stock), "arena": stock_arena},
        "micro": micro,
        "flash_ratio": micro["flash_bytes"] / len(stock),
        "arena_ratio": micro["arena_bytes"] / stock_arena,
        "time_ratio": time_ratio,
        "encodings": [row["encoding"] for row in report["tensors"]],
    }


def row_of(found):
    """A row of the table."""
    stock, micro = found["stock"], found["micro"]
    return (
        f"| {found['network']} | {found['scheme']} "
        f"| {stock['flash']:,} | {micro['flash_bytes']:,} | {found['flash_ratio']:.2f} "
        f"| {stock['arena']:,} | {micro['arena_bytes']:,} | {found['arena_ratio']:.2f} "
        f"| {found['time_ratio']:.2f} |"
    )


def main(argv):
    refuse_arguments(argv)
    print(
        "| Network | Scheme | flash, int8 | flash | ratio | arena, int8 | arena "
        "| ratio | time |\n|---|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    results = []
    for name in FLAGS.only or NETWORKS:
        for scheme in FLAGS.schemes or SCHEMES:
            results.append(measure(name, scheme))
            print(row_of(results[-1]), flush=True)
    if FLAGS.output:
        write(pathlib.Path(FLAGS.output), results)


def write(path, results):
    """Writes results, and keeps those of other networks and schemes in the file."""
    version = importlib.metadata.version("tflite-micro")
    found = json.loads(path.read_text())["results"] if path.exists() else []
    new = {(x["network"], x["scheme"]): x for x in [*found, *results]}
    report = {"runtime": f"tflite-micro {version}", "results": [*new.values()]}
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
