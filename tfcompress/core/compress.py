"""Step from a trained model and a scheme to a student."""

import keras

from tfcompress.core.plan import plan
from tfcompress.core.scheme import Scheme
from tfcompress.core.student import Student
from tfcompress.graph.graph import Graph
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild


def compress(model: keras.Model, scheme: Scheme) -> Student:
    """Makes a student of a trained model, to be compiled and trained by `fit`.

    The student has the graph, the layer names and the weights of the model. Training
    layers take the place of the layers that the scheme treats. A separable convolution
    becomes a depthwise and a pointwise layer. The model itself is left untouched.

    Args:
        model: built Functional or Sequential Keras 3 model with finite float32
            weights. Nested models and shared layers are fine.
        scheme: scheme of compression, e.g. `tfcompress.PrunedTernary(sparsity=0.9)`.

    Returns:
        A `Student`, a Functional `keras.Model`.

    Raises:
        TypeError: if `model` is no Keras 3 model.
        ValueError: if it is subclassed, not built, has NaN, infinite or 16-bit
            weights, if an override matches no layer, if the scheme's budget cannot be
            met, or if no layer can be compressed.
    """
    planned = plan(model, scheme)
    model = planned.model
    configs = {id(row.layer): row.config for row in planned.treated()}
    graph = Graph(model)
    norms = {
        id(row.layer): row.config.norm_of(graph, row.layer) for row in planned.treated()
    }
    absorbed = {id(norm) for norm in norms.values() if norm is not None}
    names = {id(row.layer): row.name for row in planned.rows}
    if not configs:
        raise ValueError(
            "There must be at least one layer to compress. Received: a model "
            f"in which every layer is left alone.\n{planned}"
        )

    before = scheme.layers_before(model, planned)

    def replace(layer):
        if id(layer) in configs:
            new = configs[id(layer)].student_layer(
                layer, scheme.weight_decay, norms[id(layer)]
            )
        elif id(layer) in absorbed:
            return None
        else:
            new = clone_layer(layer)
        return [*before.get(names.get(id(layer)), []), new]

    student, pairs = rebuild(model, replace, model_class=Student)
    for old, new in pairs:
        if id(old) in configs:
            configs[id(old)].copy_weights(old, new, norms[id(old)])
        else:
            copy_weights(old, new)
    student.scheme = scheme
    scheme.connect(student)
    scheme.prepare(student)
    return student
