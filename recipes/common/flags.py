"""Flags that all recipes share, with the checks of their values."""

import pathlib

from absl import flags

from recipes.common.data import MNIST5K, SCALINGS
from recipes.common.models import BUILDERS, MODEL_SUFFIXES, is_file

FLAGS = flags.FLAGS
FOR_BUILT_IN_MODELS = "standardize"

flags.DEFINE_string(
    "model",
    "lenet5",
    f"A built-in network ({', '.join(BUILDERS)}) or the path of a trained "
    f"{' or '.join(MODEL_SUFFIXES)} file.",
)
flags.DEFINE_string(
    "dataset",
    MNIST5K,
    f"'{MNIST5K}' (5 000 MNIST images, nothing to download) or the TensorFlow Datasets "
    "name of an image-classification set.",
)
flags.DEFINE_string("data_dir", None, "TensorFlow Datasets folder.")
flags.DEFINE_enum(
    "input_scaling",
    None,
    list(SCALINGS),
    "Scaling of the images: pixels 0..255, unit 0..1, signed -1..1, or standardized by "
    "the statistics of ImageNet or of the training images. Required for a model file; "
    f"built-in networks take '{FOR_BUILT_IN_MODELS}' by default.",
)
flags.DEFINE_integer(
    "float_epochs",
    15,
    "Epochs of float training, for a built-in network.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "batch_size", 128, "Images of a step, on all devices together.", lower_bound=1
)
flags.DEFINE_float(
    "learning_rate",
    0.05,
    "Peak learning rate of compressed training, between a warm-up and a cosine decay.",
)
flags.DEFINE_integer(
    "seed",
    0,
    "Seed of initial weights, order and augmentation.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
flags.DEFINE_integer(
    "holdout",
    0,
    "Number of training images to hold out, approximately. Accuracies are measured on "
    "them and not on test images, to choose a learning rate for example.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "max_shift",
    None,
    "Largest random shift of training images, in pixels. The default is an eighth of "
    "the height for photographs, which are mirrored as well, and a fourteenth for "
    "grayscale images.",
    lower_bound=0,
)
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "Keras dtype policy while training; results are measured in float32.",
)
flags.DEFINE_boolean(
    "distill",
    False,
    "Train on the outputs of the float model too (knowledge distillation).",
)
flags.DEFINE_float("temperature", 4.0, "Temperature of the distillation.")
flags.DEFINE_float(
    "distill_weight", 0.9, "Weight of the distillation in the loss, in (0, 1]."
)
flags.DEFINE_enum(
    "optimize",
    "size",
    ["size", "balanced", "latency"],
    "Goal of `model.tflite`, see `tfcompress.export`. With learned activation ranges, "
    "'balanced' and 'latency' files compute in int8 (`pip install .[int8]`).",
)
flags.DEFINE_boolean(
    "micro",
    False,
    "Also write `micro.tflite` for TensorFlow Lite Micro and `micro.json`, and print "
    "flash, arena and operators. Needs `pip install .[micro]`.",
)
flags.DEFINE_string(
    "output_dir", None, "Output folder; default saved_models/RECIPE_MODEL_DATASET."
)


@flags.validator("learning_rate", "expected a number above 0")
def _positive(value):
    return value > 0


@flags.validator("model")
def _known_model(value):
    if not is_file(value):
        return True
    expected = (
        f"expected a built-in network ({', '.join(BUILDERS)}) or the path of a "
        f"{' or '.join(MODEL_SUFFIXES)} file"
    )
    path = pathlib.Path(value)
    if path.suffix not in MODEL_SUFFIXES:
        raise flags.ValidationError(expected)
    if not path.is_file():
        raise flags.ValidationError(f"{expected}; there is no such file")
    return True


@flags.multi_flags_validator(["model", "input_scaling"])
def _scaling_is_known(values):
    if is_file(values["model"]) and values["input_scaling"] is None:
        raise flags.ValidationError(
            "--model is a file: expected --input_scaling to say how its input was "
            f"scaled in training, one of {', '.join(SCALINGS)}"
        )
    return True


def input_scaling():
    """Returns the name of the input scaling: the flag's, or the default."""
    return FLAGS.input_scaling or FOR_BUILT_IN_MODELS


def model_name():
    """Returns the model's name in reports and folder names: built-in or file stem."""
    return pathlib.Path(FLAGS.model).stem if is_file(FLAGS.model) else FLAGS.model


def make_output_dir(recipe):
    """Creates the output folder, checks that files can be written there, returns it.

    Raises:
        ValueError: if the folder cannot be created or written to.
    """
    dataset = FLAGS.dataset.replace("/", "_").replace(":", "_")
    default = f"saved_models/{recipe}_{model_name()}_{dataset}"
    folder = pathlib.Path(FLAGS.output_dir or default)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write_test"
        probe.touch()
        probe.unlink(missing_ok=True)  # another worker probes the same folder
    except OSError as error:
        raise ValueError(
            f"Expected --output_dir to be a folder that can be written to. Received: "
            f"{folder} ({error.strerror})."
        ) from error
    return folder


def shared_settings():
    """Returns the values of the flags of this module, by name."""
    return {flag.name: flag.value for flag in FLAGS.get_flags_for_module(__name__)}
