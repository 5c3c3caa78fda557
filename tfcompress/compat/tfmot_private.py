"""Private APIs of tensorflow-model-optimization and of tf_keras."""

from typing import Any

from tensorflow_model_optimization.python.core.quantization.keras import quantize_layer
from tensorflow_model_optimization.quantization.keras import QuantizeWrapper

# The layer that `quantize_apply` adds after quantized inputs. The public API has the
# wrappers only.
QuantizeLayer = quantize_layer.QuantizeLayer


def add_layer_weights(wrapper: QuantizeWrapper) -> None:
    """Makes the weights of the wrapped layer the wrapper's next trainable weights.

    The order of `wrapper.weights` is the format of `.h5` files. A wrapper in a loaded
    model is built before its layer, so that the layer's weights would follow those of
    the quantizer. `trainable_weights` cannot be assigned.
    """
    wrapper._trainable_weights.extend(wrapper.layer.trainable_weights)


def kernels_and_quantizers(wrapper: QuantizeWrapper) -> list[tuple[Any, Any]]:
    """Returns `(variable, quantizer)` of each quantized weight of a built wrapper.

    The configuration makes new quantizers at each request. The wrapper alone keeps the
    ones that were trained, and the float kernels, which the layer has lost.
    """
    return [(weight, quantizer) for weight, quantizer, _ in wrapper._weight_vars]


def output_quantizers(wrapper: QuantizeWrapper) -> list[Any]:
    """Returns the quantizers of a built wrapper's output: one, or none.

    As with kernels, the wrapper alone keeps the ones that were trained.
    """
    return list(wrapper._output_quantizers)
