"""Step from a trained model and a scheme to a student."""

import dataclasses

import keras

from tfcompress.core.checks import check_compressible
from tfcompress.core.config import QuantizeConfig
from tfcompress.core.distillation.distillation import Distillation, check_teacher
from tfcompress.core.plan import (
    FROZEN,
    FROZEN_HINT,
    plan_of_checked,
    rounded_rows,
    warn_of_left_alone,
)
from tfcompress.core.scheme import Scheme
from tfcompress.core.student import Student
from tfcompress.core.tensor_ranges import BITS, TensorRanges
from tfcompress.core.user_class import copy_state, user_class_of
from tfcompress.graph.parts.subclassed_model import with_graph
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.progress_bar import announced, progress_bar
from tfcompress.quantizers import Uniform


def compress(
    model: keras.Model,
    scheme: Scheme,
    distill: bool | Distillation | None = None,
    unfreeze: bool = False,
) -> Student:
    """Makes a student of a trained model, to be compiled and trained by `fit`.

    The student has the graph, the layer names and the weights of the model. Training
    layers take the place of the layers that the scheme treats. Layers that hold several
    kernels, such as attention or an LSTM, are replaced by their parts. The model itself
    is left untouched.

    A subclassed model is traced into a Functional one first. Its student has the layers
    and none of the methods and attributes of the class.

    With learned ranges of 8 bits for all activations (`activation_bits=8`) the student
    also has `tfcompress.layers.QuantizedTensor` layers. Outputs keep their names: if
    the rounding or the activation of an output becomes a layer of its own, that layer
    has the name of the output, and the layer before it is named "NAME_unrounded". With
    `Decomposition` layers that are left alone, also frozen ones, then compute with
    kernels of 8 bits.

    The student of a Functional model of the user's own class is an instance of that
    class, so that `train_step` and other methods run. Its constructor is called with
    inputs, outputs, name and the entries of `get_config`.

    Args:
        model: built Keras 3 model with finite float32 weights: Functional, Sequential,
            or subclassed with a `call` of layers and `keras.ops`. Nested models and
            shared layers are fine.
        scheme: scheme of compression, e.g. `tfcompress.PrunedTernary(sparsity=0.9)`.
        distill: True to train the student on the outputs of `model` too; or a
            `tfcompress.Distillation` with other settings or another teacher. The
            teacher is copied, as it is now.
        unfreeze: bool. Whether frozen layers (`trainable=False`) are compressed and
            trained, together with the batch normalization after them. By default they
            are left alone, float and frozen.

    Returns:
        A `Student`, a Functional `keras.Model`, of the user's class if there is one.

    Raises:
        TypeError: if `model` or the teacher is no Keras 3 model, `scheme` no scheme, or
            `distill` of another type.
        ValueError: if the model has no graph and cannot be traced, is not built, or has
            NaN, infinite or 16-bit weights; if its class overrides methods and its
            constructor cannot make a student; if an override matches no layer; if the
            budget of the scheme cannot be met; or if no layer can be compressed.

    Warns:
        UserWarning: if a fifth or more of the weights is left alone, because layers are
            frozen or because the scheme cannot compress them.
    """
    distillation = Distillation.of(distill)
    model = with_graph(model)
    teacher = model
    check_compressible(model)
    if distillation is not None:
        teacher = with_graph(distillation.teacher or model)
        check_teacher(model, teacher)
    with announced(f"Compression of '{model.name}'"):
        student = _student_of(model, scheme, unfreeze)
        if distillation is not None:
            student.distillation = distillation
            student.set_teacher(teacher)
    return student


def _student_of(model, scheme, unfreeze):
    planned = plan_of_checked(model, scheme, unfreeze)
    original, user_class = model, user_class_of(model)
    model = planned.model
    configs = {id(row.layer): row.config for row in planned.treated()}
    graph = planned.graph
    norms = {
        id(row.layer): row.config.norm_of(graph, row.layer) for row in planned.treated()
    }
    absorbed = {id(norm) for norm in norms.values() if norm is not None}
    names = {id(row.layer): row.name for row in planned.rows}
    _check_has_treatments(planned)
    warn_of_left_alone(planned)

    before = scheme.layers_before(model, planned)
    ranges = None
    if scheme.learns_all_ranges():
        quantizing = {
            key
            for key, config in configs.items()
            if getattr(config, "input_quantizer", None) is not None
        }
        ranges = TensorRanges(graph, quantizing)
        for key in ranges.without_own_range:
            configs[key] = dataclasses.replace(configs[key], input_quantizer=None)
    if scheme.packs_all_kernels():
        rounding = QuantizeConfig(Uniform(BITS))
        configs |= {id(row.layer): rounding for row in rounded_rows(planned)}

    def replace(layer):
        if id(layer) in configs:
            decay = scheme.weight_decay if id(layer) in norms else None
            norm = norms.get(id(layer))
            new = configs[id(layer)].student_layer(layer, decay, norm)
        elif id(layer) in absorbed:
            return None
        else:
            new = clone_layer(layer)
        if ranges is not None:
            ranges.adapt(layer, new)
        return [*before.get(names.get(id(layer)), []), new]

    make = Student if user_class is None else user_class.make_student
    after = None if ranges is None else ranges.layers_after
    student, pairs = rebuild(model, replace, model_class=make, after=after)
    with progress_bar("Weights of the student", len(pairs)) as bar:
        for old, new in bar.over(pairs):
            if id(old) in configs:
                configs[id(old)].copy_weights(old, new, norms.get(id(old)))
            else:
                copy_weights(old, new)
    if user_class is not None:
        copy_state(original, student)
    student.set_scheme(scheme)
    scheme.prepare(student)
    return student


def _check_has_treatments(planned):
    """Raises an error if a plan treats no layer."""
    if not planned.treated():
        is_frozen = any(row.reason == FROZEN for row in planned.rows)
        raise ValueError(
            "There must be at least one layer to compress. Received: a model in which "
            f"every layer is left alone. {FROZEN_HINT * is_frozen}\n{planned}"
        )
