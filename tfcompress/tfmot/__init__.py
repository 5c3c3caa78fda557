"""Quantizers as `QuantizeConfig`s of tensorflow-model-optimization (tf_keras).

They serve models of Keras 2 that are trained with `quantize_annotate_layer` and
`quantize_apply`. The quantizers are those of `tfcompress.quantizers`; `finalize`
returns the Keras 3 model that `tfcompress.export` writes.

>>> from tfcompress import tfmot as tfc_mot
>>> annotate = tfmot.quantization.keras.quantize_annotate_layer
>>> model = tf_keras.Sequential([
...     annotate(tf_keras.layers.Conv2D(16, 3, input_shape=(28, 28, 1)),
...              tfc_mot.TernaryQuantizeConfig(sparsity=0.5)),
...     tf_keras.layers.ReLU(), tf_keras.layers.Flatten(), tf_keras.layers.Dense(10)])
>>> student = tfmot.quantization.keras.quantize_apply(
...     model, tfc_mot.AnnotatedOnlyScheme())
>>> # compile and fit
>>> tfcompress.export(tfc_mot.finalize(student), "model.tflite", verify=images)
"""

import keras

try:
    import tensorflow_model_optimization  # noqa: F401
    import tf_keras  # noqa: F401
except ImportError as error:
    raise ImportError(
        "`tfcompress.tfmot` needs tensorflow-model-optimization and tf_keras: "
        "`pip install tfcompress[tfmot]`."
    ) from error
if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "`tfcompress.tfmot` trains tf_keras models, which run on TensorFlow. Received: "
        f"KERAS_BACKEND={keras.backend.backend()}. Set KERAS_BACKEND=tensorflow."
    )

from tfcompress.tfmot.configs import (
    AnnotatedOnlyScheme,
    BitSharingQuantizeConfig,
    TernaryQuantizeConfig,
    UniformQuantizeConfig,
)
from tfcompress.tfmot.finalize import finalize, fix_bits
from tfcompress.tfmot.quantizer import Quantizer

__all__ = [
    "AnnotatedOnlyScheme",
    "BitSharingQuantizeConfig",
    "Quantizer",
    "TernaryQuantizeConfig",
    "UniformQuantizeConfig",
    "finalize",
    "fix_bits",
]
