"""What a step costs on several devices: `python -m benchmarks.scaling [--flags]`.

Times short trainings of a model on one device and on all, with the same whole batch, in
turns, in one process: first of the plain model, then of the student. Prints the median
of the ratios of neighbours. Flags are those of `benchmarks.step_time`.

With TensorFlow the devices are all GPUs, by `MirroredStrategy`; without any, two
logical CPUs, which share the cores: they show what distribution costs, not what it
gains. With KERAS_BACKEND=jax the devices are what JAX sees, by `DataParallel`
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
    time_pairs,
)

FLAGS = flags.FLAGS
# What a `fit` does but once should not count.
STEPS = 10


def all_devices():
    """How many there are, and a function that returns the scope to train on them in."""
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
    """A function that takes `STEPS` training steps with the whole batch."""
    with scope():
        model = compile_model(MAKERS[kind](make_model()), images)
    images, labels = (np.concatenate([x] * STEPS) for x in (images, labels))

    def train():
        with scope():
            # The `fit` of a student would begin a search each time.
            keras.Model.fit(
                model, images, labels, batch_size=FLAGS.batch_size, verbose=0
            )

    return train


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Expected only --flags. Received: {argv[1:]}.")
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
        low, ratio, high = np.percentile(times[:, 1] / times[:, 0], (25, 50, 75))
        print(
            f"{FLAGS.scheme if kind == 'student' else kind}: step on 1 device "
            f"{np.median(times[:, 0]):.1f} ms, on {count} {np.median(times[:, 1]):.1f} "
            f"ms (medians of {FLAGS.pairs}), ratio {ratio:.3f} (quartiles {low:.3f} to "
            f"{high:.3f})",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
