"""Flow that all recipes share, from flags and schemes to the written files."""

import contextlib
import importlib.util
import shutil
import sys
import tempfile
import time
from pathlib import Path

import keras

import tfcompress as tfc
from recipes.common import flags, models
from recipes.common.data import hold_out, load, make_scaling
from recipes.common.pipeline import choose_augmentation, train_pipeline
from recipes.common.saving.files import FolderLock, ends_in_one_line, written_whole
from recipes.common.saving.results import Facts, Files, Measured, save_results
from recipes.common.strategy import machine, make_devices
from recipes.common.train import (
    FLOAT_LEARNING_RATE,
    FLOAT_WEIGHT_DECAY,
    UnfinishedRun,
    fit,
)
from tfcompress.core.distillation.distillation import DistilledModel
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.micro.runtime import check_installed

FLAGS = flags.FLAGS


class Experiment:
    """Run of a recipe: a float model, its data, and the schemes to apply to it.

    The flags choose them. The order of calls is `train_float`, `compress` for each
    scheme, `finish`. An interrupted run resumes when it is started again.

    Args:
        recipe: str. Name, as in `python -m recipes.NAME`.
        epochs: int. Epochs of the training of each scheme.
        make_schemes: function without arguments that returns a list of schemes.
        settings: dict or None. Further values that the result depends on.

    Attributes:
        schemes: list of the schemes.
        model: `keras.Model`. The float model.
        student: `tfcompress.core.Student`. The one that was trained last.
        folder: `pathlib.Path` to write to. Only the chief's is that of the flags.
        unfinished: `UnfinishedRun`.

    Raises:
        SystemExit: with one line, if the flags do not fit each other, the model or the
            data.
    """

    def __init__(self, recipe, epochs, make_schemes, settings=None):
        self.recipe = recipe
        self.epochs = epochs
        self._start = time.perf_counter()
        keras.utils.set_random_seed(FLAGS.seed)
        try:
            self._devices = make_devices()
            self.schemes = make_schemes()
            self.folder = flags.make_output_dir(recipe)
            self.model, data = model_and_data()
            self._distillation = _distillation(self.model)
            scaling = make_scaling(flags.input_scaling(), data.train_images)
            augmentation = choose_augmentation(data, FLAGS.max_shift)
            for scheme in self.schemes:
                _print_plan(self.model, scheme)
                _check_quantizer(scheme)
            if FLAGS.micro:
                check_installed()
            is_chief = self._devices.is_chief
            self._lock = FolderLock(self.folder) if is_chief else None
        except (ValueError, ImportError) as error:
            sys.exit(f"{recipe}: {error}")
        print(f"Input scaling {scaling}")

        settings = {
            **flags.shared_settings(),
            **(settings or {}),
            "epochs": epochs,
            "schemes": [scheme.get_config() for scheme in self.schemes],
        }
        if not self._devices.is_chief:
            self._write_to_temporary_folder()
        self.unfinished = UnfinishedRun(self.folder / "unfinished_run", settings)
        self._train, self._follow_epochs = train_pipeline(
            data, scaling, FLAGS.batch_size, FLAGS.seed, augmentation
        )
        self._measured = measured_on(self.model, data, scaling)
        self._from_logits = models.outputs_logits(
            self.model, self._measured.representative[:64]
        )

    @ends_in_one_line
    def train_float(self):
        """Trains a built-in model and writes `float.keras`; measures any model."""
        if not models.is_file(FLAGS.model):
            self._fit_plain(
                self.model,
                "float",
                FLAGS.float_epochs,
                FLOAT_LEARNING_RATE,
                weight_decay=FLOAT_WEIGHT_DECAY,
            )
            with written_whole(self.folder / "float.keras") as path:
                self.model.save(path)
        self._float_accuracy = self._measured.accuracy_of(self.model)
        kind = "held-out training" if FLAGS.holdout else "test"
        print(
            f"Float accuracy on {len(self._measured.labels)} {kind} images: "
            f"{self._float_accuracy:.4f}"
        )
        self._float_seconds = time.perf_counter() - self._start

    @ends_in_one_line
    def compress(self, scheme, subfolder=".", callbacks=(), budget=None, start=None):
        """Compresses, trains, exports, measures and reports.

        Writes `model.keras`, `model.tflite`, `report.json` and `layers.png`.

        Args:
            scheme: one of `schemes`.
            subfolder: str. Folder to write to, within the output folder.
            callbacks: Keras callbacks for the training.
            budget: see `tfcompress.reporting.build_report`.
            start: `keras.Model` or None. Model to compress; None takes the float model.

        Returns:
            The report, a dict; None on other backends than TensorFlow, which cannot
            export.
        """
        began = time.perf_counter()
        with self._devices.training_scope():
            self.student = tfc.compress(start or self.model, scheme, self._distillation)
        self._fit(
            self.student,
            f"{subfolder}/student",
            self.epochs,
            FLAGS.learning_rate,
            callbacks=callbacks,
        )
        seconds = time.perf_counter() - began
        tiny, name = tfc.finalize(self.student), type(scheme).__name__
        return self._report(tiny, name, subfolder, seconds, budget)

    @ends_in_one_line
    def train(self, model, name, subfolder, learning_rate, budget=None):
        """Trains a plain model for as many epochs as a scheme, and reports it alike.

        Args:
            model: `keras.Model` with the inputs and outputs of the float model.
            name: str. Name in place of a scheme's, in the report.
            subfolder, budget: see `compress`.
            learning_rate: float. Peak learning rate.

        Returns:
            The report, as `compress` returns it.
        """
        start = time.perf_counter()
        self._fit_plain(
            model,
            f"{subfolder}/model",
            self.epochs,
            learning_rate,
            distillation=self._distillation,
            weight_decay=FLOAT_WEIGHT_DECAY,
        )
        seconds = time.perf_counter() - start
        return self._report(model, name, subfolder, seconds, budget)

    def _report(self, tiny, scheme_name, subfolder, seconds, budget):
        dataset = FLAGS.dataset
        if FLAGS.holdout:
            held = len(self._measured.labels)
            dataset += f" ({held} training images held out)"
        facts = Facts(
            recipe=self.recipe,
            scheme=scheme_name,
            model=flags.model_name(),
            dataset=dataset,
            seed=FLAGS.seed,
            epochs=self.epochs,
            keras_backend=keras.backend.backend(),
            machine=machine(),
            seconds=self._float_seconds + seconds,
            float_accuracy=self._float_accuracy,
            budget=budget,
        )
        folder = self.folder / subfolder
        files = Files(FLAGS.optimize, FLAGS.micro)
        return save_results(tiny, facts, self._measured, folder, files)

    def finish(self):
        """Removes the backups, once all results are written."""
        self.unfinished.finish()
        if self._lock is not None:
            self._lock.release()

    def _write_to_temporary_folder(self):
        """Leaves the folder of the flags to the chief, and copies its backups."""
        shared = self.folder / "unfinished_run"
        self._own_folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._own_folder.name)
        # Files may vanish meanwhile: the chief removes backups of other settings.
        with contextlib.suppress(OSError):
            shutil.copytree(shared, self.folder / shared.name)

    def _fit_plain(self, model, *args, distillation=None, **options):
        """Trains a model by a copy, in the strategy's scope or to be distilled."""
        if self._devices.scope is None and distillation is None:
            return self._fit(model, *args, **options)
        model_class = keras.Model if distillation is None else DistilledModel
        with self._devices.training_scope():
            trained, pairs = rebuild(model, clone_layer, model_class=model_class)
            for old, new in pairs:
                copy_weights(old, new)
            if distillation is not None:
                trained.distillation = distillation
                trained.set_teacher(distillation.teacher)
        self._fit(trained, *args, **options)
        for old, new in pairs:
            copy_weights(new, old)

    def _fit(self, model, phase, epochs, learning_rate, callbacks=(), **options):
        with self._devices.training_scope():
            fit(
                model,
                self._train,
                (self._measured.images, self._measured.labels),
                epochs,
                learning_rate,
                backup_dir=self.unfinished.backup_dir(phase),
                precision=FLAGS.precision,
                from_logits=self._from_logits,
                callbacks=[self._follow_epochs, *callbacks],
                **options,
            )


def _print_plan(model, scheme):
    plan = tfc.plan(model, scheme)
    print(plan)
    if not plan.treated():
        raise ValueError(
            f"Expected --model to have layers that {type(scheme).__name__} compresses. "
            f"Received: '{model.name}', in which every layer is left alone, for the "
            "reasons above."
        )


def _check_quantizer(scheme):
    """Raises ImportError if the int8 file that the flags ask for cannot be made."""
    needed = FLAGS.optimize != "size" and getattr(scheme, "activation_bits", None)
    if needed and importlib.util.find_spec("litert_quantizer") is None:
        raise ImportError(
            f"--optimize={FLAGS.optimize} with quantized activations needs the package "
            "litert-quantizer. Install `tfcompress[int8]`."
        )


def measured_on(model, data, scaling):
    """Returns what results are measured with, a `Measured`."""
    return Measured(
        model=model,
        images=scaling(data.test_images),
        labels=data.test_labels,
        representative=scaling(data.train_images[:256]),
        batch_size=FLAGS.batch_size,
    )


def model_and_data():
    """Returns the model, untrained if it is built in, and its `ImageData`.

    Raises:
        ValueError: if the flags do not fit the model or the data.
    """
    model, image_size = None, (32, 32)
    if models.is_file(FLAGS.model):
        model = models.load_file(FLAGS.model)
        image_size = tuple(model.inputs[0].shape[1:3])
    data = load(FLAGS.dataset, FLAGS.data_dir, image_size)
    if model is None:
        model = models.BUILDERS[FLAGS.model](data.image_shape, data.num_classes)
    models.check_fits(model, data)
    if FLAGS.holdout:
        data = hold_out(data, FLAGS.holdout)
    model = models.with_image_size(model, data.image_shape)
    if FLAGS.batch_size > len(data.train_labels):
        raise ValueError(
            f"Expected --batch_size of at most {len(data.train_labels)}, the training "
            f"images of '{data.name}'. Received: {FLAGS.batch_size}."
        )
    return model, data


def _distillation(model):
    """Returns the distillation from a model, or None without --distill."""
    if not FLAGS.distill:
        return None
    return tfc.Distillation(FLAGS.temperature, FLAGS.distill_weight, model)
