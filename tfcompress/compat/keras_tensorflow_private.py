"""What Keras's TensorFlow trainer needs in order to train on several machines.

In Keras 3.15 `fit` fails with `MultiWorkerMirroredStrategy`, for any model: it averages
the first batch over workers by a call that takes no batches, and the metrics along an
axis that numbers do not have.
"""

import keras
from keras.src.backend.tensorflow import trainer


def mend_keras():
    """Replaces those two functions in Keras, for this process."""
    reduce_per_replica = trainer.reduce_per_replica

    def reduce_metrics(values, strategy, reduction):
        # Metrics are variables that are summed over all workers already.
        reduction = "first" if reduction == "auto" else reduction
        return reduce_per_replica(values, strategy, reduction)

    trainer.reduce_per_replica = reduce_metrics
    trainer.TensorFlowTrainer._maybe_symbolic_build = _build_from_local_batch


def _build_from_local_batch(model, iterator=None, data_batch=None):
    """Makes a model's optimizer and metric variables, outside of any replica."""
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
