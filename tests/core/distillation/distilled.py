"""Losses of distillation in NumPy, and those of a student."""

import keras
import numpy as np

import tfcompress as tfc

CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TERNARY = tfc.PrunedTernary(sparsity=0.8, weight_decay=0.0)


def softmax(z):
    e = np.exp(np.float64(z) - np.max(z, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def soft_losses(teacher, student, temperature=4.0):
    """Losses of each sample, of logits."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * np.sum(p * np.log(p / q), -1)


def crossentropies(labels, logits):
    return -np.log(softmax(logits)[np.arange(len(labels)), labels])


def losses_of(student, x, y, **kwargs):
    """Total loss of a training step, the outputs that it sees, and other losses."""
    with student.training_run.own_pass():
        outputs = student(x, training=True)
    total = student.compute_loss(x, y, outputs, training=True, **kwargs)
    return float(total), outputs, [float(loss) for loss in student.losses]
