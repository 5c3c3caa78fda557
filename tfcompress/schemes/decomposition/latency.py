"""Whether two layers are faster than one, timed in LiteRT."""

import keras

from tfcompress.layers.factorized import (
    decomposed_layers,
    plain_layer,
    width_argument,
)

RUNS = 30


def slower_in_two(space, cut):
    """The layers that a cut decomposes although that does not make them faster.

    Each is timed by itself, on one thread of this machine, with the channels and the
    rank that the cut leaves it.

    Args:
        space: a `RankSpace`.
        cut: a `Cut`.

    Returns:
        List of layer names.

    Raises:
        ImportError: if LiteRT is not installed.
    """
    return [
        name
        for name, kept in cut.ranks.items()
        if not kept.all() and not _pays(space, cut, name, int(kept.sum()))
    ]


def _pays(space, cut, name, rank):
    # Not at the top: a machine that only trains may lack LiteRT.
    from tfcompress.litert import float_tflite, latency

    layer, term = space.layers[name], space.width_model.terms[name]
    width = {width_argument(layer): max(1, int(cut.alive[term.writes].sum()))}
    _, *sizes = space.input_shape(name)
    axis = 0 if layer.channel_axis == 1 else -1
    if term.reads.size:
        sizes[axis] = max(1, int(cut.alive[term.reads].sum()))
    inputs = keras.Input(sizes, batch_size=1)
    basis, coefficients = decomposed_layers(layer, rank, **width)
    models = (
        keras.Model(inputs, plain_layer(layer, **width)(inputs)),
        keras.Model(inputs, coefficients(basis(inputs))),
    )
    one, two = latency([float_tflite(model) for model in models], RUNS)
    return two < one
