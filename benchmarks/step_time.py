"""Time and memory of a training step: `python -m benchmarks.step_time [--flags]`.

Times steps of a student and of the plain model in turns, in one process, and prints the
median of the ratios of neighboring steps: a machine that slows down or speeds up
meanwhile does so for both. A student of bit sharing is timed in its search, with all
gates learning in every step (in a real search, in half of the steps). A student under
a size is timed with codebooks, as after ADMM.

Memory is measured in a process of its own for each model, on Linux. It is the peak of
the resident set in some steps, less the resident set before them. Steps of one and two
images come first, so that TensorFlow's own memory does not count. The peak is the
kernel's VmHWM, which can be reset; `ru_maxrss` would still show the import of
TensorFlow or the parent process. Memory that the allocator retains counts.

With --multi_path the student of bit sharing is also compared with a multi-path search:
a path with a kernel of its own for 2, 4 and 8 bits in each layer.
"""

import functools
import time

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from benchmarks.common import (
    application_or_file,
    last_word_of_new_process,
    random_batch,
    reset_peak,
    resident_set,
)
from recipes.common import models
from recipes.common.arguments import refuse_arguments
from recipes.common.train import make_optimizer, set_precision
from tfcompress.graph.rebuild import clone_layer, rebuild
from tfcompress.quantizers import nested
from tfcompress.schemes.bit_sharing.search_space import SearchSpace

FLAGS = flags.FLAGS
WARM_UP_STEPS = 3
MEMORY_STEPS = 3

flags.DEFINE_string(
    "model",
    "resnet20",
    f"A built-in network ({', '.join(models.BUILDERS)}), for 32 x 32 images and 10 "
    "classes, the name of a network in keras.applications, or the path of a "
    f"{' or '.join(models.MODEL_SUFFIXES)} file.",
)
flags.DEFINE_integer(
    "image_size", None, "Height and width of a network in keras.applications."
)
flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
flags.DEFINE_integer("pairs", 20, "Steps timed of each model.", lower_bound=1)
flags.DEFINE_bool("jit_compile", False, "Compile the step with XLA.")
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "Keras dtype policy of all models.",
)
flags.DEFINE_enum(
    "scheme",
    "pruned_ternary",
    ["pruned_ternary", "bit_sharing", "uniform", "decomposition", "size_constrained"],
    "Scheme of the student.",
)
flags.DEFINE_float("sparsity", None, "Of pruned_ternary; by default about 0.43.", 0, 1)
flags.DEFINE_bool("multi_path", False, "Also time and measure a multi-path search.")
flags.DEFINE_enum(
    "memory_of",
    None,
    ["plain", "student", "multi_path"],
    "Only print the bytes that steps of this model take. The program itself uses it.",
)


class MultiPath(keras.layers.Layer):
    """Sum of several layers' outputs, weighted by a softmax of learned numbers."""

    def __init__(self, paths, **kwargs):
        super().__init__(**kwargs)
        self.paths = paths

    def build(self, input_shape):
        for path in self.paths:
            path.build(input_shape)
        self.mix = self.add_weight(shape=(len(self.paths),), initializer="zeros")

    def call(self, inputs):
        shares = keras.ops.softmax(keras.ops.convert_to_tensor(self.mix))
        outputs = [path(inputs) for path in self.paths]
        return sum(shares[i] * output for i, output in enumerate(outputs))

    def compute_output_shape(self, input_shape):
        return self.paths[0].compute_output_shape(input_shape)


def make_multi_path(model):
    """Returns the model with a path for each number of bits, as without sharing."""
    plans = [tfc.plan(model, tfc.Uniform(bits, bits)) for bits in nested.BITS]
    configs = {}
    for plan in plans:
        for row in plan.treated():
            configs.setdefault(id(row.layer), {})[
                row.config.kernel_quantizer.candidates
            ] = row.config

    def replace(layer):
        paths = [
            config.student_layer(layer, weight_decay=0.0)
            for config in configs.get(id(layer), {}).values()
        ]
        return MultiPath(paths, name=layer.name) if paths else clone_layer(layer)

    return rebuild(model, replace)[0]


def make_student(model):
    """Returns a student of the scheme of the flags, that takes steps on their own."""
    student = make_new_student(model)
    student.training_run.trainer = student  # as in a loop with its callbacks
    return student


def make_new_student(model):
    """Returns a student of the scheme of the flags."""
    if FLAGS.scheme == "pruned_ternary":
        return tfc.compress(model, tfc.PrunedTernary(FLAGS.sparsity))
    if FLAGS.scheme == "uniform":
        return tfc.compress(model, tfc.Uniform())
    if FLAGS.scheme == "size_constrained":
        return tfc.compress(model, tfc.SizeConstrained("1/20"))
    if FLAGS.scheme == "decomposition":
        return tfc.compress(model, tfc.Decomposition(macs="1/2"))
    if FLAGS.scheme == "size_constrained":
        return tfc.compress(model, tfc.SizeConstrained("1/10"))
    student = tfc.compress(model, tfc.BitSharing(penalty=0.1))
    SearchSpace(student).budget.strength.assign(0.1)
    return student


MAKERS = {
    "plain": lambda model: model,
    "student": make_student,
    "multi_path": make_multi_path,
}


def memory_of_steps(step, images, labels):
    """Returns the bytes by which the memory peak of this process grows in training.

    Args:
        step: function that takes one training step on images and labels.
        images, labels: arrays of one batch.
    """
    for size in (1, 2):
        step(images[:size], labels[:size])
    reset_peak()
    before = resident_set("VmRSS")
    for _ in range(MEMORY_STEPS):
        step(images, labels)
    return resident_set("VmHWM") - before


def measure_memory(kind):
    """Returns `memory_of_steps` of one model, measured in a new process."""
    return int(last_word_of_new_process("step_time", f"--memory_of={kind}"))


def make_model():
    """Returns the plain model that the flags ask for."""
    keras.utils.set_random_seed(0)
    if FLAGS.model in models.BUILDERS:
        return models.BUILDERS[FLAGS.model]((32, 32, 3), 10)
    return application_or_file(FLAGS.model, FLAGS.image_size)


def make_batch(model):
    """Returns random images and labels for the model, arrays (batch_size, ...)."""
    return random_batch(model, FLAGS.batch_size)


def compile_model(model, images):
    """Compiles a model as the flags ask for, and returns it."""
    set_precision(model, FLAGS.precision)
    model.compile(
        make_optimizer(0.01, steps=1000),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=models.outputs_logits(model, images)
        ),
        metrics=["accuracy"],
        # Without a compiler JAX runs each operation alone.
        jit_compile=FLAGS.jit_compile or keras.backend.backend() == "jax",
    )
    return model


def timed(step):
    """Returns the milliseconds that `step()` takes."""
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def time_pairs(first, second, pairs):
    """Times two steps in turns.

    Returns:
        Float array (pairs, 2) of milliseconds. Every other pair runs in reverse order,
        so that both steps find the caches warm equally often.
    """
    for _ in range(WARM_UP_STEPS):
        first()
        second()
    times = np.empty((pairs, 2))
    for pair in range(pairs):
        for column in (0, 1) if pair % 2 == 0 else (1, 0):
            times[pair, column] = timed((first, second)[column])
    return times


def ratio_of_pairs(times):
    """Returns the ratio second / first of `time_pairs`, with quartiles, as text."""
    low, ratio, high = np.percentile(times[:, 1] / times[:, 0], (25, 50, 75))
    return f"ratio {ratio:.3f} (quartiles {low:.3f} to {high:.3f})"


def main(argv):
    refuse_arguments(argv)
    model = make_model()
    images, labels = make_batch(model)

    if FLAGS.memory_of:
        step = compile_model(MAKERS[FLAGS.memory_of](model), images).train_on_batch
        print(memory_of_steps(step, images, labels))
        return
    print(
        f"{model.name}, {FLAGS.scheme}, batch {FLAGS.batch_size}, {FLAGS.precision}, "
        f"jit_compile={FLAGS.jit_compile}, {keras.backend.backend()} backend"
    )
    memory, steps = {}, {}
    for kind in ("plain", "student", "multi_path")[: 3 if FLAGS.multi_path else 2]:
        memory[kind] = measure_memory(kind)
        step = compile_model(MAKERS[kind](model), images).train_on_batch
        steps[kind] = functools.partial(step, images, labels)
    pairs = [("plain", "student"), ("student", "multi_path")]
    for first, second in pairs[: 2 if FLAGS.multi_path else 1]:
        times = time_pairs(steps[first], steps[second], FLAGS.pairs)
        first_ms, second_ms = np.median(times, axis=0)
        print(
            f"step: {first} {first_ms:.1f} ms, {second} {second_ms:.1f} ms (medians of "
            f"{FLAGS.pairs}), {ratio_of_pairs(times)}\n"
            f"memory: {first} {memory[first] / 2**20:.0f} MiB, {second} "
            f"{memory[second] / 2**20:.0f} MiB, ratio "
            f"{memory[second] / memory[first]:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
