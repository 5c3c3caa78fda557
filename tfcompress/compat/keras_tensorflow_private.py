"""Private parts of Keras's TensorFlow trainer, changed for several machines.

`fit` with `MultiWorkerMirroredStrategy` fails for any model (Keras 3.15). Two functions
are at fault; each replacement below says why. Only recipes import this module: it needs
TensorFlow.
"""

import functools

import keras
from keras.src.backend.tensorflow import trainer


def patch_multi_worker_fit() -> None:
    """Replaces both functions in Keras, for this process; more than once is as once."""
    if trainer.TensorFlowTrainer._maybe_symbolic_build is not _build_from_local_batch:
        trainer.reduce_per_replica = _without_auto(trainer.reduce_per_replica)
        trainer.TensorFlowTrainer._maybe_symbolic_build = _build_from_local_batch


def _without_auto(reduce_per_replica):
    """Keras's function that makes one value of those of all replicas, mended.

    On several machines "auto" concatenates the metrics along an axis that scalars do
    not have. Metrics are variables, summed over all workers already: the first is
    right.
    """

    @functools.wraps(reduce_per_replica)
    def reduce_metrics(values, strategy, reduction):
        reduction = "first" if reduction == "auto" else reduction
        return reduce_per_replica(values, strategy, reduction)

    return reduce_metrics


def _build_from_local_batch(model, iterator=None, data_batch=None):
    """Makes the variables of a model's optimizer and metrics from one batch.

    Keras averages the first batch over the workers, by a call that takes no batches.
    Only its shapes and types count here, so the first replica's part does.
    """
    strategy = model._distribute_strategy
    if strategy is None:  # as Keras does: a model that was made outside of any
        return
    if iterator is not None:
        _, _, batches = next(iter(iterator))
        data_batch = keras.tree.map_structure(
            lambda x: strategy.experimental_local_results(x)[0], next(batches)
        )
    with strategy.scope():
        model._symbolic_build(data_batch=data_batch)
