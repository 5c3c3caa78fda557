"""From a trained tf_keras model to a Keras 3 model of packed integer layers."""

import os
import tempfile
import warnings

import keras
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import (
    quantize_layer,
    quantize_wrapper,
)

from tfcompress import layers
from tfcompress.core.config import QuantizeConfig
from tfcompress.core.finalize import finalize as finalize_student
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.tfmot.configs import Config
from tfcompress.tfmot.quantizer import PricedQuantizer


def _without_groups(kind):
    """A class that loads the layers of Keras 2 which say how many groups they have."""

    def from_config(config):
        return kind.from_config({k: v for k, v in config.items() if k != "groups"})

    return type(kind.__name__, (kind,), {"from_config": staticmethod(from_config)})


# Keras 3 does not know the argument of theirs, which is always 1.
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


def fix_bits(model):
    """Ends the search of all `BitSharingQuantizeConfig`s; a further fit fine-tunes.

    Args:
        model: a tf_keras model from `quantize_apply`, changed in place.

    Returns:
        `{layer name: bits}`.
    """
    found = {}
    for name, wrapper in _wrappers(model).items():
        kernel, _ = _quantizers(wrapper)
        if isinstance(kernel, PricedQuantizer):
            kernel.fix_bits()
            found[name] = kernel.quantizer.bits
    return found


def finalize(model):
    """The Keras 3 model of packed layers that computes what a tf_keras model trained.

    See `tfcompress.finalize`, of which it is the counterpart.

    Args:
        model: a tf_keras model from `quantize_apply`, with configurations of this
            module. It is left untouched.

    Returns:
        A Functional `keras.Model` for `tfcompress.export`.

    Raises:
        TypeError: if it is no tf_keras model.
        ValueError: if no configuration of this module was applied to it, or if
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
            "No layer has a QuantizeConfig of `tfcompress.tfmot`. Received: "
            f"'{model.name}'. Annotate its layers and call `quantize_apply`."
        )
    _warn_of_others(model)
    return finalize_student(_student(model, wrappers))


def _wrappers(model):
    """`{layer name: wrapper}` of the layers with a configuration of this module."""
    return {
        layer.layer.name: layer
        for layer in model.layers
        if isinstance(layer, quantize_wrapper.QuantizeWrapper)
        and isinstance(layer.quantize_config, Config)
    }


def _warn_of_others(model):
    kinds = (quantize_wrapper.QuantizeWrapper, quantize_layer.QuantizeLayer)
    ours = list(_wrappers(model).values())
    names = [x.name for x in model.layers if isinstance(x, kinds) and x not in ours]
    if names:
        warnings.warn(
            f"Layers {', '.join(names)} are quantized by tensorflow-model-optimization "
            "itself; the finalized model computes them in float. Train with "
            "`quantize_apply(model, tfcompress.tfmot.AnnotatedOnlyScheme())` to do "
            "without.",
            stacklevel=3,
        )


def _student(model, wrappers):
    """A Keras 3 student with the quantizers of a tf_keras model, and their state."""
    plain, quantize_layers = _without_wrappers(model)
    new, outputs = {}, {}

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


def _quantizers(wrapper):
    """The `Quantizer`s of a wrapper's kernel and output, None where there is none."""
    if wrapper is None:
        return None, None
    kernel = wrapper._weight_vars[0][1] if wrapper._weight_vars else None
    output = wrapper._output_quantizers[0] if wrapper._output_quantizers else None
    return kernel, output


def _without_wrappers(model):
    """What a tf_keras model is without its quantization, in Keras 3.

    Returns:
        `(plain, quantize_layers)`: the model with the float weights, and the names of
        the layers in it that only stand where a `QuantizeLayer` was.
    """
    pairs = []

    def clone(layer):
        if isinstance(layer, quantize_layer.QuantizeLayer):
            return tf_keras.layers.Activation("linear", name=layer.name)
        wrapped = isinstance(layer, quantize_wrapper.QuantizeWrapper)
        new = clone_layer(layer.layer if wrapped else layer)
        pairs.append((layer, new))
        return new

    plain = tf_keras.models.clone_model(model, clone_function=clone)
    for old, new in pairs:
        new.set_weights(_float_weights(old))
    quantize_layers = {
        x.name for x in model.layers if isinstance(x, quantize_layer.QuantizeLayer)
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are saving your model as an HDF5")
        path = os.path.join(folder, "plain.h5")
        plain.save(path)
        loaded = keras.models.load_model(path, _LEGACY_LAYERS, compile=False)
    return loaded, quantize_layers


def _float_weights(layer):
    """A layer's weights, or those of a wrapped one before they are quantized."""
    if not isinstance(layer, quantize_wrapper.QuantizeWrapper):
        return layer.get_weights()
    # A quantized kernel, which comes first, is no longer among its layer's own weights.
    kernels = [weight.numpy() for weight, _, _ in layer._weight_vars]
    return kernels + layer.layer.get_weights()
