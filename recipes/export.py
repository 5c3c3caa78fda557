"""Results of a training on JAX: `python -m recipes.export --output_dir=FOLDER`.

With `KERAS_BACKEND=jax` a recipe ends with `model.keras`. This program takes the same
flags `--model`, `--dataset`, `--input_scaling` and `--output_dir`, runs on TensorFlow,
and writes `model.tflite`, `report.json` and `layers.png` of every such model.
"""

import sys

import keras
from absl import app

from recipes.common import flags, models
from recipes.common.arguments import refuse_arguments
from recipes.common.data import make_scaling
from recipes.common.run import measured_on, model_and_data
from recipes.common.saving.files import FolderLock
from recipes.common.saving.results import UNEXPORTED, Files, export_saved

FLAGS = flags.FLAGS


def main(argv):
    refuse_arguments(argv)
    try:
        folder = flags.make_output_dir("export")
        waiting = [path.parent for path in sorted(folder.rglob(UNEXPORTED))]
        if not waiting or keras.backend.backend() != "tensorflow":
            raise ValueError(
                "Expected KERAS_BACKEND=tensorflow, and --output_dir to be that of a "
                f"training on another backend, with {UNEXPORTED}. Received: "
                f"KERAS_BACKEND={keras.backend.backend()}, {folder}."
            )
        lock = FolderLock(folder)
        model, data = model_and_data()
    except ValueError as error:
        sys.exit(f"export: {error}")
    if not models.is_file(FLAGS.model):
        model = models.load_file(folder / "float.keras")
    scaling = make_scaling(flags.input_scaling(), data.train_images)
    measured = measured_on(model, data, scaling)
    for path in waiting:
        export_saved(measured, path, Files(FLAGS.optimize, FLAGS.micro))
    lock.release()


if __name__ == "__main__":
    app.run(main)
