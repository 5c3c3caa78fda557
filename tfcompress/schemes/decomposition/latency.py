"""Latency of decomposed layers in LiteRT."""

import keras

from tfcompress.layers.factorized_forms import (
    decomposed_layers,
    plain_layer,
    width_argument,
)
from tfcompress.progress_bar import progress_bar
from tfcompress.schemes.decomposition.search_space import RankSpace
from tfcompress.schemes.decomposition.selection import Selection

RUNS = 30


def slower_when_decomposed(space: RankSpace, selection: Selection) -> list[str]:
    """Returns the decomposed layers of a selection that are not faster for it.

    Each layer is timed alone, on one thread of this machine, with the channels and the
    rank of the selection.

    Args:
        space: `RankSpace` of the student.
        selection: `Selection`.

    Returns:
        List of layer names.

    Raises:
        ImportError: if LiteRT is not installed.
    """
    ranks = {n: int(x.sum()) for n, x in selection.keep_ranks.items() if not x.all()}
    with progress_bar("Latencies of decomposed layers", len(ranks)) as bar:
        return [
            name
            for name, rank in bar.over(ranks.items())
            if not _is_faster(space, selection, name, rank)
        ]


def _is_faster(space, selection, name, rank):
    # Not at the top: a machine that only trains may lack LiteRT.
    from tfcompress.litert import float_tflite, latency

    layer, term = space.layers[name], space.width_model.terms[name]
    outputs = int(selection.keep_groups[term.writes].sum())
    width = {width_argument(layer): max(1, outputs)}
    _, *sizes = space.input_shape(name)
    axis = 0 if layer.channel_axis == 1 else -1
    if term.reads.size:
        sizes[axis] = max(1, int(selection.keep_groups[term.reads].sum()))
    inputs = keras.Input(sizes, batch_size=1)
    basis, coefficients = decomposed_layers(layer, rank, **width)
    models = (
        keras.Model(inputs, plain_layer(layer, **width)(inputs)),
        keras.Model(inputs, coefficients(basis(inputs))),
    )
    merged, decomposed = latency([float_tflite(model) for model in models], RUNS)
    return decomposed < merged
