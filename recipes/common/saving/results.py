"""Files of a trained model: exported, measured and reported, now or later.

The export needs TensorFlow. On another backend `save_results` writes the facts that
only the training knows, and `python -m recipes.export` does the rest.
"""

import dataclasses
import json

import keras
import numpy as np

import tfcompress as tfc
from recipes.common.saving.files import write_whole, written_whole
from recipes.common.train import accuracy
from tfcompress import reporting
from tfcompress.cost import layer_costs
from tfcompress.litert import float_tflite, latency, peak_memory, predict
from tfcompress.litert.proof.levels import has_quantized_activations

LATENCY_RUNS = 50
UNEXPORTED = "unexported.json"


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts of a training, see `tfcompress.reporting.build_report`.

    Attributes:
        recipe, scheme, model, dataset: str. Names.
        seed, epochs: int.
        keras_backend, machine: str. Backend and kind of the processors that trained.
        seconds: float. Duration of the trainings.
        float_accuracy: float. Accuracy of the float model, a fraction.
        budget: {"kind", "requested"} or None.
    """

    recipe: str
    scheme: str
    model: str
    dataset: str
    seed: int
    epochs: int
    keras_backend: str
    machine: str
    seconds: float
    float_accuracy: float
    budget: dict | None


@dataclasses.dataclass(frozen=True)
class Files:
    """Files that are asked for.

    Attributes:
        optimize: str. Argument of `tfcompress.export`.
        micro: bool. Whether to write the file for microcontrollers as well.
    """

    optimize: str = "size"
    micro: bool = False


@dataclasses.dataclass(frozen=True)
class Measured:
    """Float model and images that results are measured with.

    Attributes:
        model: `keras.Model`. The float model.
        images: float32 (samples, height, width, channels), scaled.
        labels: int64 (samples,).
        representative: float32 (samples, height, width, channels). Training images.
        batch_size: int.
    """

    model: keras.Model
    images: np.ndarray
    labels: np.ndarray
    representative: np.ndarray
    batch_size: int

    def accuracy_of(self, model):
        """Returns the accuracy of a Keras model, a fraction."""
        outputs = model.predict(self.images, self.batch_size, verbose=0)
        return accuracy(outputs, self.labels)


def save_results(tiny, facts, measured, folder, files):
    """Writes `model.keras`, and the results where the backend can export.

    Args:
        tiny: finalized `keras.Model`.
        facts: `Facts`.
        measured: `Measured`.
        folder: `pathlib.Path`, created where missing.
        files: `Files`.

    Returns:
        The report, a dict; None on other backends than TensorFlow.
    """
    folder.mkdir(exist_ok=True)
    with written_whole(folder / "model.keras") as path:
        tiny.save(path)
    if not _can_export():
        text = json.dumps(dataclasses.asdict(facts), indent=2)
        write_whole(folder / UNEXPORTED, text.encode())
        print(
            f"Test accuracy: {measured.accuracy_of(tiny):.4f}. Written: {folder}/"
            "model.keras. For the .tflite and its report, call `python -m "
            "recipes.export` with the same flags and KERAS_BACKEND=tensorflow."
        )
        return None
    return _export(tiny, facts, measured, folder, files)


def export_saved(measured, folder, files):
    """Exports the `model.keras` that another backend trained, see `save_results`.

    Args:
        measured, files: see `save_results`.
        folder: `pathlib.Path` of a folder with `model.keras` and `unexported.json`.

    Returns:
        The report, a dict.
    """
    facts = Facts(**json.loads((folder / UNEXPORTED).read_text()))
    tiny = keras.models.load_model(folder / "model.keras", compile=False)
    return _export(tiny, facts, measured, folder, files)


def _can_export():
    return keras.backend.backend() == "tensorflow"


def _options(tiny, measured, files):
    """Arguments of `tfcompress.export`; learned ranges make an int8 file."""
    options = {"optimize": files.optimize}
    if files.optimize != "size" and has_quantized_activations(tiny):
        options["activations"] = "int8"
        options["representative_data"] = measured.representative
    return options


def _export(tiny, facts, measured, folder, files):
    tflite = folder / "model.tflite"
    export_report = tfc.export(
        tiny, tflite, verify=measured.images, **_options(tiny, measured, files)
    )
    float_file = float_tflite(measured.model)
    # The exporter measures the float network without the removed filters.
    export_report["size"]["float_tflite_bytes"] = len(float_file)
    report = reporting.build_report(
        recipe=facts.recipe,
        scheme=facts.scheme,
        model=facts.model,
        dataset=facts.dataset,
        seed=facts.seed,
        epochs=facts.epochs,
        machine=facts.machine,
        wall_seconds=round(facts.seconds, 1),
        accuracy={
            "float": facts.float_accuracy,
            "compressed": measured.accuracy_of(tiny),
            "litert": accuracy(predict(tflite, measured.images), measured.labels),
        },
        export_report=export_report,
        float_model=measured.model,
        tiny=tiny,
        keras_path=folder / "model.keras",
        budget=facts.budget,
        latency_ms=_latency(float_file, tflite),
        memory={
            "float_arena_bytes": peak_memory(float_file),
            "arena_bytes": peak_memory(tflite),
        },
    )
    report["keras_backend"] = facts.keras_backend
    if files.micro:
        _write_micro(tiny, measured, folder)
    reporting.write_report(report, folder / "report.json")
    (folder / UNEXPORTED).unlink(missing_ok=True)
    reporting.plot_layers(
        report["layers"], folder / "layers.png", before=layer_costs(measured.model)
    )
    print(tfc.summary(tiny))
    _print_results(report, folder)
    return report


def _write_micro(tiny, measured, folder):
    """Writes the file for microcontrollers and its report, and prints its sizes."""
    report = tfc.export(
        tiny,
        folder / "micro.tflite",
        target="micro",
        representative_data=measured.representative,
        verify=measured.images[:256],
    )
    sizes = report["micro"]
    print(
        f"Microcontroller: {sizes['flash_bytes']:,} bytes of flash "
        f"({sizes['int8_flash_bytes']:,} with INT8 kernels), an arena of "
        f"{sizes['arena_bytes']:,} bytes; {', '.join(sizes['operators'])}."
    )
    (folder / "micro.json").write_text(json.dumps(report, indent=2))


def _latency(float_file, tflite):
    """Returns the milliseconds per image of both files, as `report.json` has them."""
    float_ms, compressed_ms = latency([float_file, tflite], LATENCY_RUNS)
    return {
        "float": float_ms,
        "compressed": compressed_ms,
        "threads": 1,
        "runs": LATENCY_RUNS,
    }


def _print_results(report, folder):
    accuracies, size = report["accuracy"], report["size"]
    agreement, latency_ms = report["agreement"], report["latency_ms"]
    memory = report["memory"]
    print(
        f"Test accuracy: float {accuracies['float']:.4f}, "
        f"compressed {accuracies['compressed']:.4f}, "
        f"in LiteRT {accuracies['litert']:.4f}.\n"
        f"Size of .tflite: float {size['float_tflite_bytes']:,} bytes, "
        f"compressed {size['tflite_bytes']:,}, after xz {size['tflite_xz_bytes']:,}.\n"
        f"Latency in LiteRT, 1 thread: float {latency_ms['float']:.3f} ms, "
        f"compressed {latency_ms['compressed']:.3f} ms.\n"
        f"Memory at run time: float {memory['float_arena_bytes']:,} bytes, "
        f"compressed {memory['arena_bytes']:,}.\n"
        f"LiteRT and Keras: same class for {agreement['top1']:.2%} of "
        f"{agreement['samples']} images, outputs differ by at most "
        f"{agreement['max_abs_diff']:.2g}.\n"
        f"Written to {folder}/; trained for {report['wall_seconds']:.0f} s."
    )
