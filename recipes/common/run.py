"""From flags and a scheme to the four artefacts: the flow that all recipes share."""

import sys
import time

import keras

import tfcompress as tfc
from recipes.common import flags, models
from recipes.common.data import load, make_scaling, train_pipeline
from recipes.common.train import (
    FLOAT_LEARNING_RATE,
    FLOAT_WEIGHT_DECAY,
    UnfinishedRun,
    accuracy,
    fit,
)
from tfcompress import reporting
from tfcompress.litert import float_tflite, latency, predict

FLAGS = flags.FLAGS
LATENCY_RUNS = 50


def run(recipe, make_scheme):
    """Trains, compresses, exports, measures and reports, as the flags say.

    Writes `model.keras`, `model.tflite`, `report.json` and `layers.png` into the output
    folder.

    Args:
        recipe: its name, as in `python -m recipes.NAME`.
        make_scheme: function without arguments that returns the scheme.
    """
    start = time.perf_counter()
    keras.utils.set_random_seed(FLAGS.seed)
    try:
        scheme = make_scheme()
        folder = flags.make_output_dir(recipe)
        model, data = _model_and_data()
        scaling = make_scaling(flags.input_scaling(), data.train_images)
        print(tfc.plan(model, scheme))
    except ValueError as error:
        sys.exit(f"{recipe}: {error}")
    print(f"Input scaling {scaling}")

    settings = {**flags.shared_settings(), "scheme": scheme.get_config()}
    unfinished = UnfinishedRun(folder / "unfinished_run", settings)
    train = train_pipeline(data, scaling, FLAGS.batch_size, FLAGS.seed)
    test = scaling(data.test_images), data.test_labels
    training = {
        "precision": FLAGS.precision,
        "from_logits": models.outputs_logits(model, scaling(data.train_images[:64])),
    }

    if not models.is_file(FLAGS.model):
        fit(
            model,
            train,
            test,
            FLAGS.float_epochs,
            FLOAT_LEARNING_RATE,
            weight_decay=FLOAT_WEIGHT_DECAY,
            backup_dir=unfinished.backup_dir("float"),
            **training,
        )
    float_accuracy = _accuracy(model, test)
    print(f"Float accuracy on {len(test[1])} test images: {float_accuracy:.4f}")

    student = tfc.compress(model, scheme)
    fit(
        student,
        train,
        test,
        FLAGS.epochs,
        FLAGS.learning_rate,
        backup_dir=unfinished.backup_dir("student"),
        **training,
    )
    tiny = tfc.finalize(student)
    tiny.save(folder / "model.keras")
    tflite = folder / "model.tflite"
    export_report = tfc.export(tiny, tflite, verify=test[0])

    accuracies = {
        "float": float_accuracy,
        "compressed": _accuracy(tiny, test),
        "litert": accuracy(predict(tflite, test[0]), test[1]),
    }
    latency_ms = _latency(model, tflite)
    report = reporting.build_report(
        recipe=recipe,
        scheme=type(scheme).__name__,
        model=flags.model_name(),
        dataset=FLAGS.dataset,
        seed=FLAGS.seed,
        epochs=FLAGS.epochs,
        wall_seconds=round(time.perf_counter() - start, 1),
        accuracy=accuracies,
        export_report=export_report,
        float_model=model,
        tiny=tiny,
        keras_path=folder / "model.keras",
        latency_ms=latency_ms,
    )
    reporting.write_report(report, folder / "report.json")
    reporting.plot_layers(report["layers"], folder / "layers.png")
    unfinished.finish()
    print(tfc.summary(tiny))
    _print_results(report, folder)


def _model_and_data():
    """The model, untrained if it is a built-in one, and the data that fits it."""
    model, image_size = None, (32, 32)
    if models.is_file(FLAGS.model):
        model = models.load_file(FLAGS.model)
        image_size = tuple(model.inputs[0].shape[1:3])
    data = load(FLAGS.dataset, FLAGS.data_dir, image_size)
    if model is None:
        model = models.BUILDERS[FLAGS.model](data.image_shape, data.num_classes)
    models.check_fits(model, data)
    if FLAGS.batch_size > len(data.train_labels):
        raise ValueError(
            f"Expected --batch_size of at most {len(data.train_labels)}, the training "
            f"images of '{data.name}'. Received: {FLAGS.batch_size}."
        )
    return model, data


def _accuracy(model, test):
    images, labels = test
    return accuracy(model.predict(images, FLAGS.batch_size, verbose=0), labels)


def _latency(model, tflite):
    """Milliseconds per image, on one thread, of the float file and the small one."""
    float_ms, compressed_ms = latency([float_tflite(model), tflite], LATENCY_RUNS)
    return {
        "float": float_ms,
        "compressed": compressed_ms,
        "threads": 1,
        "runs": LATENCY_RUNS,
    }


def _print_results(report, folder):
    accuracies, size = report["accuracy"], report["size"]
    agreement, latency_ms = report["agreement"], report["latency_ms"]
    print(
        f"Test accuracy: float {accuracies['float']:.4f}, "
        f"compressed {accuracies['compressed']:.4f}, "
        f"in LiteRT {accuracies['litert']:.4f}.\n"
        f"Size of .tflite: float {size['float_tflite_bytes']:,} bytes, "
        f"compressed {size['tflite_bytes']:,}, after xz {size['tflite_xz_bytes']:,}.\n"
        f"Latency in LiteRT, 1 thread: float {latency_ms['float']:.3f} ms, "
        f"compressed {latency_ms['compressed']:.3f} ms.\n"
        f"LiteRT and Keras: same class for {agreement['top1']:.2%} of "
        f"{agreement['samples']} images, outputs differ by at most "
        f"{agreement['max_abs_diff']:.2g}.\n"
        f"Written to {folder}/ in {report['wall_seconds']:.0f} s."
    )
