"""Step from a trained student to the model of its inference forms."""

import warnings

import keras
import numpy as np

from tfcompress.core.checks import DIVERGED, check_finite, check_finite_outputs
from tfcompress.graph.batch_norm import foldable
from tfcompress.graph.channels import Channels
from tfcompress.graph.dead_branches import remove_dead_branches
from tfcompress.graph.graph import Graph
from tfcompress.graph.levels.biases import round_biases
from tfcompress.graph.levels.integer_forms import on_integers
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.graph.remove import remove_groups
from tfcompress.graph.rounded_norms import (
    affine_norm,
    copy_affine,
    lone_norms,
    snap_folded,
)
from tfcompress.layers import PackedKernel, QuantizedTensor, TrainingForm
from tfcompress.progress_bar import announced, progress_bar


def finalize(student: keras.Model) -> keras.Model:
    """Replaces the training layers of a student by their inference forms.

    - A `Quant*` layer becomes its `Packed*` counterpart with the codes and scales of
      the student. It absorbs the BatchNormalization after it, unless another layer
      reads the layer's output.
    - A quantized input becomes a `QuantizeActivation` before the layer, with the
      layer's name and "_input".
    - A `QuantizedTensor` becomes a `QuantizeActivation` with its name. Layers whose
      inputs and outputs have learned ranges then compute as int8 operators of LiteRT
      do: with integers, and with biases rounded to the units of these operators.
    - A `Factorized*` layer becomes one plain layer, or two (`NAME_basis` and `NAME`) if
      ranks were removed (EDP, pruning and merging). With learned ranges of 8 bits
      these are `Packed*` layers, and two have a `QuantizeActivation` between them
      (`NAME_basis_levels`).
    - Channels that the training pruned are removed from all layers.
    All other layers are copied. The result computes in float32, also if the student
    was trained in mixed precision.

    Args:
        student: model from `tfcompress.compress`, or any Functional or Sequential
            model with `tfcompress.layers.Quant*` or `Factorized*` layers. It is left
            untouched.

    Returns:
        A Functional `keras.Model` that predicts as the student does in inference. It
        loads without the scheme. If all activations have learned ranges of 8 bits, it
        rounds as int8 operators do, so that single values may differ by a level.

    Raises:
        ValueError: if the model has no graph, no training layers, or weights or outputs
            that are not finite; if a `Quant*` layer has a float kernel, or an
            `input_quantizer` that is no `ActivationQuantizer`; or if a training with a
            budget of bytes ended above it.

    Warns:
        UserWarning: if the training of a layer did not reach its end, or the student
            exceeds its scheme's budget.
    """
    layers = _training_layers(Graph(student))
    with announced(f"Finalization of '{student.name}'"):
        _check(student, layers)
        model = inference_model(student)
        if _has_tensor_ranges(student):
            model = on_integers(model)
        check_finite(model, DIVERGED)
        check_finite_outputs(model, DIVERGED)
        return model


def inference_model(student: keras.Model) -> keras.Model:
    """Returns `finalize(student)` without any check."""
    graph = Graph(student)
    trained = _training_layers(graph)
    norms = {
        id(layer): foldable(graph, layer)
        for layer in trained.values()
        if layer.folds_batch_norm
    }
    folded = {id(norm) for norm in norms.values() if norm is not None}
    names = {tensor.name for call in graph.calls for tensor in call.inputs}
    new_layers = {
        id(layer): layer.inference_layers(norms.get(id(layer)), names)
        for layer in trained.values()
    }

    scheme = getattr(student, "scheme", None)
    rounds = scheme is not None and scheme.rounds_norms()
    lone = {id(norm) for norm in lone_norms(graph)} if rounds else set()

    def replace(layer):
        if id(layer) in folded:
            return None
        if id(layer) in new_layers:
            return new_layers[id(layer)] or None
        is_short = layer.compute_dtype in ("float16", "bfloat16")
        changes = {"dtype": "float32"} if is_short else {}
        if id(layer) in lone:
            return affine_norm(layer, **changes)
        return clone_layer(layer, **changes)

    model, pairs = rebuild(student, replace)
    with progress_bar("Layers of the finalized model", len(pairs)) as bar:
        for old, new in bar.over(pairs):
            if id(old) in new_layers:
                norm = norms.get(id(old))
                old.copy_to_inference(new_layers[id(old)], norm)
                if rounds and norm is not None and isinstance(new, PackedKernel):
                    snap_folded(new)
            elif id(old) in lone:
                copy_affine(old, new)
            else:
                copy_weights(old, new)
    if _has_tensor_ranges(student):
        round_biases(model)
    model = _without_closed_channels(model, trained, new_layers)
    may_have_constants = any(x.may_become_constant for x in trained.values())
    return remove_dead_branches(model) if may_have_constants else model


def _has_tensor_ranges(student):
    layers = _training_layers(Graph(student)).values()
    return any(isinstance(layer, QuantizedTensor) for layer in layers)


def _training_layers(graph):
    return {
        name: layer
        for name, layer in graph.layers().items()
        if isinstance(layer, TrainingForm)
    }


def _check(student, trained):
    if not trained:
        raise ValueError(
            "A model with quantized or factorized layers is expected, as "
            f"`tfcompress.compress` makes it. Received: '{student.name}', which has "
            "none. Compress and train it first."
        )
    check_finite(student, DIVERGED)
    for layer in trained.values():
        layer.check_inference_form()
    for name, layer in trained.items():
        for message in layer.unfinished():
            warnings.warn(f"Layer '{name}': {message}", stacklevel=3)
    scheme = getattr(student, "scheme", None)
    if scheme is not None:
        scheme.check_finished(student)
    reason = scheme.unmet(student) if scheme is not None else None
    if reason is not None:
        warnings.warn(
            f"The student does not meet the goal of its scheme: {reason}. Train "
            "it with `fit` to its end.",
            stacklevel=3,
        )


def _without_closed_channels(model, trained, new_layers):
    """Model without the channels that all layers that read them have closed."""
    graph = Graph(model)
    names = {id(layer): name for name, layer in graph.layers().items()}
    channels = Channels(graph)
    masked, needed = np.zeros((2, len(channels.frozen)), bool)
    for name, layer in trained.items():
        first = new_layers[id(layer)][:1]
        new_name = names[id(first[0])] if first else name
        mask = layer.channel_mask(channels, new_name)
        if mask is not None:
            groups, is_open = mask
            masked[groups] = True
            needed[groups[is_open]] = True
    closed = masked & ~needed
    return remove_groups(model, channels, closed) if closed.any() else model
