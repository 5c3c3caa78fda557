"""Classes of int8 files and of Keras: `python -m benchmarks.devices.agreement`.

Trains ResNet-8 and MobileNetV2 with `activation_bits=8` under each scheme, shortly: the
accuracy is not that of a finished training. It compares the finalized model with the
int8 file in LiteRT, and with the student that was trained, over all test images of
CIFAR-10. Prints rows of a Markdown table.
With --output the results are written as JSON, after each row.
"""

import importlib.metadata
import json
import pathlib
import tempfile

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from benchmarks.devices.operator_costs import machine
from recipes.common import data, models
from recipes.common.arguments import refuse_arguments

FLAGS = flags.FLAGS
# Learned ranges need none of them.
REPRESENTATIVE = 64
BATCH_SIZE = 64
# Functions, since a scheme may not be shared by two students.
SCHEMES = {
    "PrunedTernary": lambda: tfc.PrunedTernary(activation_bits=8),
    "Uniform": lambda: tfc.Uniform(4, activation_bits=8),
    "Decomposition": lambda: tfc.Decomposition("0.7", activation_bits=8),
    "SizeConstrained": lambda: tfc.SizeConstrained("1/16", activation_bits=8),
}

flags.DEFINE_string(
    "resnet8",
    None,
    "A file of MLPerf Tiny's ResNet-8; random weights without it.",
)
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")
flags.DEFINE_integer("images", 2000, "Training images of each of the trainings.")
flags.DEFINE_integer("epochs", 1, "Epochs of each of the trainings.")
flags.DEFINE_list("networks", ["resnet8", "mobilenetv2"], "Networks to measure.")
flags.DEFINE_list("schemes", list(SCHEMES), "Schemes to measure.")
flags.DEFINE_string("output", None, "A .json file for the results.")


def network(name):
    """Returns `(float model, scale of pixels, offset, whether it is trained)`."""
    if name == "resnet8" and FLAGS.resnet8:
        return models.load_file(FLAGS.resnet8), 1.0, 0.0, True
    return models.BUILDERS[name]((32, 32, 3), 10), 1 / 127.5, -1.0, False


def train(model, images, labels):
    """Trains a float model or a student."""
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=models.outputs_logits(model, images[:BATCH_SIZE])
    )
    model.compile(keras.optimizers.Adam(1e-3), loss)
    model.fit(images, labels, BATCH_SIZE, epochs=FLAGS.epochs, verbose=2)


def measure(model, scheme, train_data, test_data):
    """Measures a scheme on a float model, and returns a dict of results."""
    keras.utils.set_random_seed(0)
    student = tfc.compress(model, SCHEMES[scheme]())
    train(student, *train_data)
    tiny = tfc.finalize(student)
    images, labels = test_data
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        report = tfc.export(
            tiny,
            path,
            verify=images[:REPRESENTATIVE],
            optimize="latency",
            activations="int8",
            representative_data=train_data[0][:REPRESENTATIVE],
        )
        found = np.asarray(tfc.litert.predict(path, images))
    expected = tiny.predict(images, BATCH_SIZE, verbose=0)
    trained = student.predict(images, BATCH_SIZE, verbose=0)
    classes, expected_classes, trained_classes = (
        x.argmax(axis=1) for x in (found, expected, trained)
    )
    return {
        "images": FLAGS.images,
        "epochs": FLAGS.epochs,
        "test_images": len(images),
        "bytes": report["size"]["tflite_bytes"],
        "ranges": report["ranges"],
        "top1_student": float((trained_classes == labels).mean()),
        "top1_keras": float((expected_classes == labels).mean()),
        "top1_file": float((classes == labels).mean()),
        "same_class": float((classes == expected_classes).mean()),
        "same_class_student": float((trained_classes == expected_classes).mean()),
        "largest_difference": float(np.abs(found - expected).max()),
    }


def main(argv):
    refuse_arguments(argv)
    cifar = data.load("cifar10", FLAGS.data_dir)
    results = {
        "litert": importlib.metadata.version("ai-edge-litert"),
        "machine": machine(),
        "rows": [],
    }
    for name in FLAGS.networks:
        keras.utils.set_random_seed(0)
        model, scale, offset, is_trained = network(name)
        train_images, test_images = (
            x.astype("float32") * scale + offset
            for x in (cifar.train_images[: FLAGS.images], cifar.test_images)
        )
        train_data = train_images, cifar.train_labels[: FLAGS.images]
        if not is_trained:
            train(model, *train_data)
        for scheme in FLAGS.schemes:
            test_data = test_images, cifar.test_labels
            found = measure(model, scheme, train_data, test_data)
            row = {"network": name, "scheme": scheme, **found}
            results["rows"].append(row)
            print(row_of(row), flush=True)
            if FLAGS.output:
                text = json.dumps(results, indent=1) + "\n"
                pathlib.Path(FLAGS.output).write_text(text)


def row_of(found):
    """A row of the table."""
    keys = "top1_student", "top1_keras", "top1_file", "same_class_student", "same_class"
    shares = [100 * found[key] for key in keys]
    return (
        f"| {found['network']} | {found['scheme']} | {found['test_images']:,} | "
        f"{found['bytes']:,} | " + " | ".join(f"{x:.2f}" for x in shares) + " |"
    )


if __name__ == "__main__":
    app.run(main)
