"""Training: optimizer, precision, and resumption after an interruption."""

import json
import shutil

import keras

from recipes.common.saving.backup import Backup
from recipes.common.saving.files import write_whole

WARM_UP = 0.05  # share of the steps
# Both as in the ResNet paper. Keras applies weight decay outside of the momentum: the
# paper's 1e-4 with momentum 0.9 amounts to this.
FLOAT_LEARNING_RATE = 0.1
FLOAT_WEIGHT_DECAY = 1e-3
NOT_DECAYED = ("bias", "beta", "gamma")
# Norm of all gradients of a float training. A larger one can end it at chance: LeNet-5,
# in which no layer is normalized, did in one of two orders of additions.
FLOAT_GRADIENT_NORM = 1.0


def make_optimizer(learning_rate, steps, weight_decay=None):
    """Returns SGD with Nesterov momentum 0.9, linear warm-up and cosine decay to zero.

    Args:
        learning_rate: float. Peak learning rate.
        steps: int. Steps of the whole training.
        weight_decay: float or None, which is that of float trainings. Biases and
            normalization are spared, and gradients are clipped.
    """
    warm_up_steps = int(WARM_UP * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=steps - warm_up_steps,
        warmup_target=learning_rate,
        warmup_steps=warm_up_steps,
    )
    optimizer = keras.optimizers.SGD(
        schedule,
        momentum=0.9,
        nesterov=True,
        weight_decay=weight_decay,
        global_clipnorm=FLOAT_GRADIENT_NORM if weight_decay else None,
    )
    if weight_decay:
        optimizer.exclude_from_weight_decay(var_names=NOT_DECAYED)
    return optimizer


def fit(
    model,
    train,
    test,
    epochs,
    learning_rate,
    *,
    from_logits,
    precision,
    weight_decay=None,
    backup_dir,
    callbacks=(),
):
    """Trains `model` in place, under `precision`, and sets it back to float32.

    The accuracy on `test` is shown after each epoch and selects nothing: the model of
    the last epoch is the result.

    Args:
        model: built `keras.Model`.
        train: `tf.data.Dataset` of (images, labels) batches.
        test: arrays (images, labels).
        epochs: int. Number of epochs.
        learning_rate: float. Peak learning rate.
        from_logits: bool. Whether the model ends in logits, not probabilities.
        precision: str. Keras dtype policy to train under.
        weight_decay: float or None. Weight decay of the optimizer.
        backup_dir: `pathlib.Path`. Folder of the state after each epoch, see `Backup`.
            Training continues from a state that is found there. It ends at once if that
            is the state of the last epoch.
        callbacks: Keras callbacks. Their `on_epoch_end` comes before the backup.
    """
    set_precision(model, precision)
    model.compile(
        make_optimizer(learning_rate, epochs * len(train), weight_decay),
        keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
        metrics=["accuracy"],
        jit_compile=jit_compile(),
    )
    backup = Backup(backup_dir)
    model.fit(
        train,
        epochs=epochs,
        initial_epoch=backup.restore(model),
        validation_data=test,
        callbacks=[*callbacks, backup],
        shuffle=False,
    )
    set_precision(model, "float32")


def jit_compile():
    """Returns the `jit_compile` of `Model.compile`: False with TensorFlow on a CPU.

    There steps take longer with XLA, and the start two to three times as long.
    """
    if keras.backend.backend() != "tensorflow":
        return "auto"
    import tensorflow as tf  # here: benchmarks on JAX run without it

    devices = {device.device_type for device in tf.config.list_logical_devices()}
    return False if devices == {"CPU"} else "auto"


def set_precision(model, policy):
    """Sets the dtype policy of all layers but the last, which stays float32.

    Variables stay float32: float32 and the mixed policies differ in the compute dtype.
    The model has to be compiled afterwards.

    Args:
        model: `keras.Model`, nested or not.
        policy: str. "float32", "mixed_bfloat16" or "mixed_float16".
    """
    model.dtype_policy = policy
    for layer in _flat_layers(model):
        layer.dtype_policy = policy
    layer.dtype_policy = "float32"


def _flat_layers(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _flat_layers(layer)
        else:
            yield layer


def accuracy(outputs, labels):
    """Returns the share (0-1) of rows whose largest output is at the label.

    Args:
        outputs: float array (samples, classes).
        labels: int array (samples,).
    """
    return float((outputs.argmax(-1) == labels).mean())


class UnfinishedRun:
    """Folder from which an interrupted run resumes when it is started again.

    A run resumes with equal settings only; other settings empty the folder.

    Args:
        folder: `pathlib.Path`, created where missing.
        settings: dict of values that JSON can hold. The result depends on them.
    """

    def __init__(self, folder, settings):
        self.folder = folder
        recorded = folder / "settings.json"
        text = json.dumps(settings, indent=2)
        if recorded.exists() and recorded.read_bytes() == text.encode():
            print(f"Continuing the interrupted run in {folder}.")
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_whole(recorded, text.encode())

    def backup_dir(self, phase):
        """Returns the path of the folder for the backups of one phase of training."""
        return self.folder / phase

    def finish(self):
        """Removes the folder, once the results are written."""
        shutil.rmtree(self.folder)
