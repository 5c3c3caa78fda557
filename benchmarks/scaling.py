"""Step time on several devices: `python -m benchmarks.scaling [--flags]`.

Times short trainings of a model on one device and on all, with the same whole batch, in
turns, in one process: first of the plain model, then of the student. Prints the median
of the ratios of neighboring trainings. Flags are those of `benchmarks.step_time`.

With TensorFlow the devices are all GPUs, by `MirroredStrategy`. Without a GPU they are
two logical CPUs, which share the cores and show the overhead of distribution alone.
With KERAS_BACKEND=jax they are all devices of JAX, by `DataParallel`
(XLA_FLAGS=--xla_force_host_platform_device_count=2 makes two of a CPU).
"""

import contextlib
import functools

import keras
import numpy as np
from absl import app, flags

from benchmarks.step_time import (
    MAKERS,
    compile_model,
    make_batch,
    make_model,
    ratio_of_pairs,
    time_pairs,
)
from recipes.common.arguments import refuse_arguments

FLAGS = flags.FLAGS
# Enough steps that the work of a `fit` before its first step does not count.
STEPS = 10


def all_devices():
    """Returns the number of devices, and a function that returns their scope."""
    if keras.backend.backend() == "jax":
        distribution = keras.distribution.DataParallel()
        return len(keras.distribution.list_devices()), distribution.scope
    import tensorflow as tf

    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    if kind == "CPU":
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 2,
        )
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    return len(devices), tf.distribute.MirroredStrategy(devices).scope


def make_training(kind, scope, images, labels):
    """Returns a function that takes `STEPS` training steps with the whole batch."""
    with scope():
        model = compile_model(MAKERS[kind](make_model()), images)
    images, labels = (np.concatenate([x] * STEPS) for x in (images, labels))

    def train():
        with scope():
            # Without `Student.fit`, which would begin a search each time.
            keras.Model.fit(
                model, images, labels, batch_size=FLAGS.batch_size, verbose=0
            )

    return train


def main(argv):
    refuse_arguments(argv)
    count, scope = all_devices()
    if FLAGS.batch_size % count:
        raise app.UsageError(
            f"Expected a --batch_size that {count} devices can share evenly. "
            f"Received: {FLAGS.batch_size}."
        )
    images, labels = make_batch(make_model())
    print(f"{FLAGS.model}, batch {FLAGS.batch_size}, {keras.backend.backend()} backend")
    for kind in ("plain", "student"):
        make = functools.partial(make_training, kind, images=images, labels=labels)
        one, several = make(scope=contextlib.nullcontext), make(scope=scope)
        times = time_pairs(one, several, FLAGS.pairs) / STEPS
        on_one, on_all = np.median(times, axis=0)
        print(
            f"{FLAGS.scheme if kind == 'student' else kind}: step on 1 device "
            f"{on_one:.1f} ms, on {count} {on_all:.1f} ms (medians of {FLAGS.pairs}), "
            f"{ratio_of_pairs(times)}",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
