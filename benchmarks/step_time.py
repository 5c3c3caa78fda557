"""What a training step of a student costs: `python -m benchmarks.step_time [--flags]`.

Times steps of a `tfc.PrunedTernary` student and of the plain model in turns, in one
process, and prints the median of the ratios of neighbouring steps: a machine that slows
down or speeds up meanwhile does so for both.
"""

import time

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from recipes.common import models
from recipes.common.train import make_optimizer, set_precision

FLAGS = flags.FLAGS
WARM_UP_STEPS = 3

flags.DEFINE_string(
    "model",
    "resnet20",
    f"A built-in network ({', '.join(models.BUILDERS)}), for 32 x 32 images and 10 "
    "classes, or the path of a .keras or .h5 file.",
)
flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
flags.DEFINE_integer("pairs", 20, "Steps timed of each model.", lower_bound=1)
flags.DEFINE_bool("jit_compile", False, "Compile the step with XLA.")
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "Keras dtype policy of both models.",
)
flags.DEFINE_float(
    "sparsity", None, "Of the scheme; by default the best cosine decides.", 0, 1
)


def make_step(model, images, labels):
    """A function that takes one training step on fixed data and waits for its end."""
    set_precision(model, FLAGS.precision)
    model.compile(
        make_optimizer(0.01, steps=1000),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=models.outputs_logits(model, images)
        ),
        metrics=["accuracy"],
        jit_compile=FLAGS.jit_compile,
    )
    return lambda: model.train_on_batch(images, labels)


def timed(step):
    """Milliseconds that `step()` takes."""
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def time_pairs(first, second, pairs):
    """Times two steps in turns.

    Returns:
        Array (pairs, 2) of milliseconds. Every other pair runs in reverse order, so
        that neither step is always the one that finds the caches warm.
    """
    for _ in range(WARM_UP_STEPS):
        first()
        second()
    times = np.empty((pairs, 2))
    for pair in range(pairs):
        for column in (0, 1) if pair % 2 == 0 else (1, 0):
            times[pair, column] = timed((first, second)[column])
    return times


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Expected only --flags. Received: {argv[1:]}.")
    keras.utils.set_random_seed(0)
    if models.is_file(FLAGS.model):
        model = models.load_file(FLAGS.model)
    else:
        model = models.BUILDERS[FLAGS.model]((32, 32, 3), 10)
    random = np.random.default_rng(0)
    shape = (FLAGS.batch_size, *model.inputs[0].shape[1:])
    images = random.normal(size=shape).astype("float32")
    labels = random.integers(model.outputs[0].shape[-1], size=FLAGS.batch_size)

    student = tfc.compress(model, tfc.PrunedTernary(FLAGS.sparsity))
    plain_step = make_step(model, images, labels)
    student_step = make_step(student, images, labels)
    times = time_pairs(plain_step, student_step, FLAGS.pairs)
    ratios = times[:, 1] / times[:, 0]
    low, ratio, high = np.percentile(ratios, (25, 50, 75))
    plain, compressed = np.median(times, axis=0)
    print(
        f"{model.name}, batch {FLAGS.batch_size}, {FLAGS.precision}, "
        f"jit_compile={FLAGS.jit_compile}, {keras.backend.backend()} backend\n"
        f"plain step {plain:.1f} ms, student step {compressed:.1f} ms (medians of "
        f"{FLAGS.pairs})\n"
        f"ratio {ratio:.3f} (quartiles {low:.3f} to {high:.3f})"
    )


if __name__ == "__main__":
    app.run(main)
