"""Devices that a recipe trains on."""

import contextlib
import json
import os
from dataclasses import dataclass

import keras
import tensorflow as tf
from absl import flags

from tfcompress.compat.keras_tensorflow_private import patch_multi_worker_fit

FLAGS = flags.FLAGS
# Backends on which Keras can train with each strategy.
STRATEGIES = {
    "none": ("tensorflow", "jax"),
    "mirrored": ("tensorflow",),
    "multi_worker": ("tensorflow",),
    "tpu": ("tensorflow",),
    "data_parallel": ("jax",),
}

flags.DEFINE_enum(
    "strategy",
    "none",
    list(STRATEGIES),
    "Devices to train on: one; all GPUs of this machine (mirrored); those of several "
    "machines (multi_worker, described by TF_CONFIG, with a common --output_dir); a "
    "TPU; or, with KERAS_BACKEND=jax, all that JAX sees (data_parallel). The batch is "
    "split among them; the result is that of one device.",
)
flags.DEFINE_string("tpu", "", "With --strategy=tpu: name or address, or 'local'.")


@dataclass
class Devices:
    """Devices that train one model together.

    Attributes:
        replicas: int. Number of devices that share a batch.
        is_chief: bool. Whether this process writes the results.
        scope: function without arguments, or None. Returns the context in which models
            to be trained have to be made; None if they may be made anywhere.
    """

    replicas: int = 1
    is_chief: bool = True
    scope: object = None

    def training_scope(self):
        """Returns the context to make, compile and train models in."""
        return self.scope() if self.scope else contextlib.nullcontext()


def make_devices():
    """Returns the `Devices` that the flags ask for.

    To be called before TensorFlow or JAX computes anything.

    Raises:
        ValueError: if the backend, the environment or the batch size does not fit.
    """
    name, backend = FLAGS.strategy, keras.backend.backend()
    if backend not in STRATEGIES[name]:
        raise ValueError(
            f"Expected KERAS_BACKEND={' or '.join(STRATEGIES[name])} with "
            f"--strategy={name}. Received: KERAS_BACKEND={backend}."
        )
    devices = _MAKERS[name]()
    if FLAGS.batch_size % devices.replicas:
        raise ValueError(
            "Expected a --batch_size that can be split evenly among "
            f"{devices.replicas} devices. Received: {FLAGS.batch_size}."
        )
    return devices


def machine():
    """Returns the kind of processors that train, such as "2 CPU cores"."""
    if keras.backend.backend() == "jax":
        import jax

        devices = jax.devices()
        kinds = [x.device_kind for x in devices if x.platform != "cpu"]
    else:
        devices = tf.config.list_physical_devices("GPU")
        details = map(tf.config.experimental.get_device_details, devices)
        kinds = [x.get("device_name", "GPU") for x in details]
    if not kinds:
        return f"{len(os.sched_getaffinity(0))} CPU cores"
    return kinds[0] if len(kinds) == 1 else f"{len(kinds)} x {kinds[0]}"


def _mirrored():
    strategy = tf.distribute.MirroredStrategy()
    return Devices(strategy.num_replicas_in_sync, scope=strategy.scope)


def _multi_worker():
    try:
        config = json.loads(os.environ["TF_CONFIG"])
        workers, task = config["cluster"]["worker"], config["task"]
        is_chief = task["type"] == "worker" and int(task["index"]) == 0
        assert is_chief or 0 < int(task["index"]) < len(workers)
    except (KeyError, ValueError, TypeError, AssertionError) as error:
        raise ValueError(
            'Expected TF_CONFIG to be like {"cluster": {"worker": ["host1:port", '
            '"host2:port"]}, "task": {"type": "worker", "index": 0}}, with another '
            f"index on each. Received: {os.environ.get('TF_CONFIG')}."
        ) from error
    patch_multi_worker_fit()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    return Devices(strategy.num_replicas_in_sync, is_chief, strategy.scope)


def _tpu():
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=FLAGS.tpu)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, tf.errors.OpError) as error:
        raise ValueError(
            "Expected --tpu to be the name or address of a TPU that can be reached. "
            f"Received: '{FLAGS.tpu}' ({error})."
        ) from error
    strategy = tf.distribute.TPUStrategy(resolver)
    return Devices(strategy.num_replicas_in_sync, scope=strategy.scope)


def _data_parallel():
    distribution = keras.distribution.DataParallel()
    keras.distribution.set_distribution(distribution)
    return Devices(len(keras.distribution.list_devices()))


_MAKERS = {
    "none": Devices,
    "mirrored": _mirrored,
    "multi_worker": _multi_worker,
    "tpu": _tpu,
    "data_parallel": _data_parallel,
}
