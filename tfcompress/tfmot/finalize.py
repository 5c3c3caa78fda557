"""Conversion of a trained tf_keras model to a Keras 3 model of packed layers."""

import os
import tempfile
import warnings
from typing import Any

import keras
import numpy as np
import tf_keras
from tensorflow_model_optimization.quantization.keras import QuantizeWrapper

from tfcompress import layers
from tfcompress.arguments import listed
from tfcompress.compat.tfmot_private import (
    QuantizeLayer,
    kernels_and_quantizers,
    output_quantizers,
)
from tfcompress.core.config import QuantizeConfig
from tfcompress.core.finalize import finalize as finalize_student
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.tfmot.configs import Config
from tfcompress.tfmot.quantizer import PricedQuantizer, Quantizer


def _without_groups(kind):
    """Creates a class that ignores the `groups` of Keras 2 in a configuration."""

    def from_config(config):
        return kind.from_config({k: v for k, v in config.items() if k != "groups"})

    return type(kind.__name__, (kind,), {"from_config": staticmethod(from_config)})


# Keras 2 saves `groups`, always 1, for these layers; Keras 3 refuses the argument.
_LEGACY_LAYERS = {
    kind.__name__: _without_groups(kind)
    for kind in (
        keras.layers.Conv1DTranspose,
        keras.layers.Conv2DTranspose,
        keras.layers.Conv3DTranspose,
        keras.layers.DepthwiseConv1D,
        keras.layers.DepthwiseConv2D,
        keras.layers.SeparableConv1D,
        keras.layers.SeparableConv2D,
    )
}


def fix_bits(model: tf_keras.Model) -> dict[str, int]:
    """Freezes the bits of all `BitSharingQuantizeConfig`s; a further fit fine-tunes.

    Args:
        model: a tf_keras model from `quantize_apply`, changed in place.

    Returns:
        `{layer name: bits}`.
    """
    found = {}
    for name, wrapper in _wrappers(model).items():
        kernel, _ = _quantizers(wrapper)
        if isinstance(kernel, PricedQuantizer):
            kernel.freeze_bits()
            found[name] = kernel.quantizer.bits
    return found


def finalize(model: tf_keras.Model) -> keras.Model:
    """Converts a trained tf_keras model to a Keras 3 model of packed layers.

    It is the counterpart of `tfcompress.finalize`.

    Args:
        model: a tf_keras model from `quantize_apply`, with configurations of this
            package. It is left untouched.

    Returns:
        A Functional `keras.Model` for `tfcompress.export`.

    Raises:
        TypeError: if it is no tf_keras model.
        ValueError: if no configuration of this package was applied to it, or if
            `tfcompress.finalize` refuses it.
    """
    if not isinstance(model, tf_keras.Model):
        raise TypeError(
            "A tf_keras model is expected; `tfcompress.finalize` takes those of Keras "
            f"3. Received: {type(model)}."
        )
    wrappers = _wrappers(model)
    if not wrappers:
        raise ValueError(
            "A model with QuantizeConfigs of `tfcompress.tfmot` is expected. Received: "
            f"'{model.name}', without any. Annotate its layers and call "
            "`quantize_apply`."
        )
    _warn_of_others(model)
    return finalize_student(_student(model, wrappers))


def _wrappers(model: tf_keras.Model) -> dict[str, QuantizeWrapper]:
    """Finds `{layer name: wrapper}` of layers with a configuration of this package."""
    return {
        layer.layer.name: layer
        for layer in model.layers
        if isinstance(layer, QuantizeWrapper)
        and isinstance(layer.quantize_config, Config)
    }


def _warn_of_others(model):
    kinds = (QuantizeWrapper, QuantizeLayer)
    ours = list(_wrappers(model).values())
    names = [x.name for x in model.layers if isinstance(x, kinds) and x not in ours]
    if names:
        warnings.warn(
            f"Layers {listed(names)} are quantized by tensorflow-model-optimization "
            "itself; the finalized model computes them in float. Train without these "
            "quantizers: `quantize_apply(model, "
            "tfcompress.tfmot.AnnotatedOnlyScheme())`.",
            stacklevel=3,
        )


def _student(
    model: tf_keras.Model, wrappers: dict[str, QuantizeWrapper]
) -> keras.Model:
    """Builds a Keras 3 student with the quantizers of a tf_keras model."""
    plain, quantize_layers = _plain_keras_3(model)
    new: dict[keras.layers.Layer, Any] = {}
    outputs: dict[keras.layers.Layer, layers.QuantizeActivation] = {}

    def replace(layer):
        if layer.name in quantize_layers:
            return None
        kernel, output = _quantizers(wrappers.get(layer.name))
        if kernel:
            config = QuantizeConfig(kernel.quantizer)
            new[layer] = config.student_layer(layer, weight_decay=None)
        else:
            new[layer] = clone_layer(layer)
        if not output:
            return new[layer]
        outputs[layer] = layers.QuantizeActivation(
            output.quantizer.bits, output.quantizer.signed, name=f"{layer.name}_output"
        )
        return [new[layer], outputs[layer]]

    student, _ = rebuild(plain, replace)
    for layer, copy in new.items():
        kernel, output = _quantizers(wrappers.get(layer.name))
        if kernel:
            QuantizeConfig.copy_weights(layer, copy)
            kernel.copy_state(copy.kernel_quantizer)
            if isinstance(kernel, PricedQuantizer):
                copy.kernel_quantizer.gates.freeze(kernel.quantizer.bits)
        else:
            copy_weights(layer, copy)
        if output:
            outputs[layer].set_scale(output.quantizer.scale_value())
    return student


def _quantizers(
    wrapper: QuantizeWrapper | None,
) -> tuple[Quantizer | None, Quantizer | None]:
    """Returns the quantizers of a wrapper's kernel and output, None without one."""
    if wrapper is None:
        return None, None
    kernels, outputs = kernels_and_quantizers(wrapper), output_quantizers(wrapper)
    return (kernels[0][1] if kernels else None), (outputs[0] if outputs else None)


def _plain_keras_3(model: tf_keras.Model) -> tuple[keras.Model, set[str]]:
    """Converts a tf_keras model to Keras 3, without its quantization.

    Returns:
        `(plain, quantize_layers)`: the model with the float weights, and the names of
        its layers that take the place of a `QuantizeLayer` and do nothing.
    """
    pairs = []

    def clone(layer):
        if isinstance(layer, QuantizeLayer):
            return tf_keras.layers.Activation("linear", name=layer.name)
        wrapped = isinstance(layer, QuantizeWrapper)
        new = clone_layer(layer.layer if wrapped else layer)
        pairs.append((layer, new))
        return new

    plain = tf_keras.models.clone_model(model, clone_function=clone)
    for old, new in pairs:
        new.set_weights(_float_weights(old))
    quantize_layers = {x.name for x in model.layers if isinstance(x, QuantizeLayer)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are saving your model as an HDF5")
        path = os.path.join(folder, "plain.h5")
        plain.save(path)
        loaded = keras.models.load_model(path, _LEGACY_LAYERS, compile=False)
    return loaded, quantize_layers


def _float_weights(layer: tf_keras.layers.Layer) -> list[np.ndarray]:
    """Returns a layer's weights; those of a wrapped one before quantization."""
    if not isinstance(layer, QuantizeWrapper):
        return layer.get_weights()
    # A quantized kernel, which comes first, is no longer a weight of its layer.
    kernels = [kernel.numpy() for kernel, _ in kernels_and_quantizers(layer)]
    return kernels + layer.layer.get_weights()
