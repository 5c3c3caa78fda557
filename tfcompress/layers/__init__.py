"""Layers of students in training, and of compressed models in inference."""

from tfcompress.layers.embedding import (
    PackedEmbedding,
    PackedReversibleEmbedding,
    QuantEmbedding,
    QuantReversibleEmbedding,
)
from tfcompress.layers.factorized import (
    FactorizedConv1D,
    FactorizedConv2D,
    FactorizedDense,
    FactorizedKernel,
)
from tfcompress.layers.factorized_norm import (
    FactorizedNorm,
    FactorizedNormConv1D,
    FactorizedNormConv2D,
    FactorizedNormDense,
)
from tfcompress.layers.packed import (
    PackedConv1D,
    PackedConv1DTranspose,
    PackedConv2D,
    PackedConv2DTranspose,
    PackedConv3D,
    PackedDense,
    PackedDepthwiseConv1D,
    PackedDepthwiseConv2D,
    PackedKernel,
    PackedProduct,
)
from tfcompress.layers.quantized import (
    QuantConv1D,
    QuantConv1DTranspose,
    QuantConv2D,
    QuantConv2DTranspose,
    QuantConv3D,
    QuantDense,
    QuantDepthwiseConv1D,
    QuantDepthwiseConv2D,
    QuantizedKernel,
)
from tfcompress.layers.recurrent.convolution import ConvLSTMSteps
from tfcompress.layers.recurrent.forms import (
    PackedConvLSTMSteps,
    PackedGRUSteps,
    PackedLSTMSteps,
    PackedSimpleRNNSteps,
    QuantConvLSTMSteps,
    QuantGRUSteps,
    QuantLSTMSteps,
    QuantSimpleRNNSteps,
)
from tfcompress.layers.recurrent.steps import (
    GRUSteps,
    LSTMSteps,
    RecurrentSteps,
    SimpleRNNSteps,
)
from tfcompress.layers.registration import register
from tfcompress.layers.tensors.activation import QuantizeActivation
from tfcompress.layers.tensors.means import RoundMeans
from tfcompress.layers.tensors.quantized_tensor import QuantizedTensor
from tfcompress.layers.tensors.sums import IntegerAdd
from tfcompress.layers.training_form import TrainingForm

__all__ = [
    "ConvLSTMSteps",
    "FactorizedConv1D",
    "FactorizedConv2D",
    "FactorizedDense",
    "FactorizedKernel",
    "FactorizedNorm",
    "FactorizedNormConv1D",
    "FactorizedNormConv2D",
    "FactorizedNormDense",
    "GRUSteps",
    "IntegerAdd",
    "LSTMSteps",
    "PackedConv1D",
    "PackedConv1DTranspose",
    "PackedConv2D",
    "PackedConv2DTranspose",
    "PackedConv3D",
    "PackedConvLSTMSteps",
    "PackedDense",
    "PackedDepthwiseConv1D",
    "PackedDepthwiseConv2D",
    "PackedEmbedding",
    "PackedGRUSteps",
    "PackedKernel",
    "PackedLSTMSteps",
    "PackedProduct",
    "PackedReversibleEmbedding",
    "PackedSimpleRNNSteps",
    "QuantConv1D",
    "QuantConv1DTranspose",
    "QuantConv2D",
    "QuantConv2DTranspose",
    "QuantConv3D",
    "QuantConvLSTMSteps",
    "QuantDense",
    "QuantDepthwiseConv1D",
    "QuantDepthwiseConv2D",
    "QuantEmbedding",
    "QuantGRUSteps",
    "QuantLSTMSteps",
    "QuantReversibleEmbedding",
    "QuantSimpleRNNSteps",
    "QuantizeActivation",
    "QuantizedKernel",
    "QuantizedTensor",
    "RoundMeans",
    "RecurrentSteps",
    "SimpleRNNSteps",
    "TrainingForm",
    "register",
]
