"""What a step costs on several devices: `python -m benchmarks.scaling [--flags]`.

Times training steps of a model on one device and on all, with the same whole batch, in
turns, in one process: first of the plain model, then of the student. Prints the median
of the ratios of neighbouring steps. Flags are those of `benchmarks.step_time`.

With TensorFlow the devices are all GPUs, by `MirroredStrategy`; without any, two
logical CPUs, which share the cores: they show what distribution costs, not what it
gains. With KERAS_BACKEND=jax the devices are what JAX sees, by `DataParallel`
(XLA_FLAGS=--xla_force_host_platform_device_count=2 makes two of a CPU).
"""

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


class OneDevice:
    """The first device."""

    count = 1

    def make_step(self, make, images, labels):
        """Builds a model and returns a function that takes one step on a batch."""
        model = compile_model(make(), images)
        return lambda: model.train_on_batch(images, labels)


class Mirrored:
    """All GPUs of TensorFlow, or two logical CPUs."""

    def __init__(self):
        import tensorflow as tf

        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        if kind == "CPU":
            tf.config.set_logical_device_configuration(
                tf.config.list_physical_devices("CPU")[0],
                [tf.config.LogicalDeviceConfiguration()] * 2,
            )
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        self.strategy = tf.distribute.MirroredStrategy(devices)
        self.count = len(devices)

    def make_step(self, make, images, labels):
        import tensorflow as tf

        with self.strategy.scope():
            model = compile_model(make(), images)
        data = tf.data.Dataset.from_tensors((images, labels)).cache().repeat()
        batches = iter(self.strategy.experimental_distribute_dataset(data))
        model.make_train_function()

        def step():
            logs = model.train_function(batches)
            return keras.ops.convert_to_numpy(logs["loss"])  # waits for the end

        return step


class DataParallel(OneDevice):
    """All devices of JAX."""

    def __init__(self):
        self.distribution = keras.distribution.DataParallel()
        self.count = len(keras.distribution.list_devices())

    def make_step(self, make, images, labels):
        with self.distribution.scope():
            step = super().make_step(make, images, labels)

        def distributed():
            with self.distribution.scope():
                return step()

        return distributed


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Expected only --flags. Received: {argv[1:]}.")
    on_jax = keras.backend.backend() == "jax"
    several = DataParallel() if on_jax else Mirrored()
    if FLAGS.batch_size % several.count:
        raise app.UsageError(
            f"Expected a --batch_size that {several.count} devices can share evenly. "
            f"Received: {FLAGS.batch_size}."
        )
    images, labels = make_batch(make_model())
    print(f"batch {FLAGS.batch_size}, {keras.backend.backend()} backend")
    for kind in ("plain", "student"):

        def make(kind=kind):
            return MAKERS[kind](make_model())

        steps = [x.make_step(make, images, labels) for x in (OneDevice(), several)]
        times = time_pairs(*steps, FLAGS.pairs)
        low, ratio, high = np.percentile(times[:, 1] / times[:, 0], (25, 50, 75))
        print(
            f"{FLAGS.model}, {FLAGS.scheme if kind == 'student' else kind}: step on 1 "
            f"device {np.median(times[:, 0]):.1f} ms, on {several.count} "
            f"{np.median(times[:, 1]):.1f} ms (medians of {FLAGS.pairs}), ratio "
            f"{ratio:.3f} (quartiles {low:.3f} to {high:.3f})",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
