"""Training: the optimizer, precision, and going on after an interruption."""

import json
import shutil

import keras

WARM_UP = 0.05
# Both as in the ResNet paper. Keras applies weight decay outside of the momentum, so
# that its 1e-4 with momentum 0.9 amounts to this.
FLOAT_LEARNING_RATE = 0.1
FLOAT_WEIGHT_DECAY = 1e-3
NOT_DECAYED = ("bias", "beta", "gamma")


def make_optimizer(learning_rate, steps, weight_decay=None):
    """SGD with Nesterov momentum 0.9, a linear warm-up and a cosine decay to zero."""
    warm_up_steps = int(WARM_UP * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=steps - warm_up_steps,
        warmup_target=learning_rate,
        warmup_steps=warm_up_steps,
    )
    optimizer = keras.optimizers.SGD(
        schedule, momentum=0.9, nesterov=True, weight_decay=weight_decay
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
    """Trains `model` in place, under `precision`; it is float32 again afterwards.

    The accuracy on `test` after each epoch is shown and decides nothing: the model of
    the last epoch is the result.

    Args:
        model: built `keras.Model`.
        train: `tf.data.Dataset` of (images, labels) batches.
        test: arrays (images, labels).
        epochs: number of epochs.
        learning_rate: peak learning rate.
        from_logits: whether the model ends in logits rather than probabilities.
        precision: name of the Keras dtype policy to train under.
        weight_decay: of the optimizer, or None.
        backup_dir: folder for the state after each epoch. Training goes on from the
            state that is found there; after the last epoch's there is nothing to do.
        callbacks: Keras callbacks; they see the end of an epoch before it is backed up.
    """
    set_precision(model, precision)
    model.compile(
        make_optimizer(learning_rate, epochs * len(train), weight_decay),
        keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
        metrics=["accuracy"],
        jit_compile=jit_compile(),
    )
    backup = keras.callbacks.BackupAndRestore(backup_dir, delete_checkpoint=False)
    model.fit(
        train,
        epochs=epochs,
        validation_data=test,
        callbacks=[*callbacks, backup],
        shuffle=False,
    )
    set_precision(model, "float32")


def jit_compile():
    """Whether to compile with XLA, as Keras takes it.

    With TensorFlow on a CPU a step takes longer with it, and starting to train takes
    two to three times as long.
    """
    if keras.backend.backend() != "tensorflow":
        return "auto"
    import tensorflow as tf  # not at the top: benchmarks on JAX do without it

    devices = {device.device_type for device in tf.config.list_logical_devices()}
    return False if devices == {"CPU"} else "auto"


def set_precision(model, policy):
    """Sets the dtype policy of every layer; the output layer stays float32.

    Variables keep their float32 values: the policies in question differ in what they
    compute with. Compile afterwards.
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
    """Share (0-1) of the rows (samples, classes) whose largest output is the label."""
    return float((outputs.argmax(-1) == labels).mean())


class UnfinishedRun:
    """The folder from which an interrupted run goes on when it is started again.

    It is continued only with the settings it was started with; others begin anew.

    Args:
        folder: `pathlib.Path`, created if need be.
        settings: dict of plain values that the run's result depends on.
    """

    def __init__(self, folder, settings):
        self.folder = folder
        recorded = folder / "settings.json"
        text = json.dumps(settings, indent=2)
        if recorded.exists() and recorded.read_text() == text:
            print(f"Going on with the interrupted run in {folder}.")
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        recorded.write_text(text)

    def backup_dir(self, phase):
        """Folder for the epochs of one phase of training."""
        return str(self.folder / phase)

    def finish(self):
        """Removes the folder: the run's results are written."""
        shutil.rmtree(self.folder)
