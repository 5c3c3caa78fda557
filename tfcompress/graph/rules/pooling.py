"""Rules of pooling, padding, cropping and resizing in space."""

from keras import layers

from tfcompress.graph.graph import Call
from tfcompress.graph.trace import Space, Trace
from tfcompress.layers.kernel import channel_axis


def spatial(trace: Trace, call: Call) -> None:
    """Each channel is computed on its own."""
    trace.put(call, trace.read(call, channel_axis(call.operation)))


def global_pooling(trace: Trace, call: Call) -> None:
    space = trace.read(call, channel_axis(call.operation))
    axis = space.axis if call.operation.keepdims else 1
    trace.put(call, Space(axis, space.ids))


_SPATIAL = (
    layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D,
    layers.Cropping1D, layers.Cropping2D, layers.Cropping3D,
    layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D,
    layers.Resizing,
    layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D,
    layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D,
)  # fmt: skip
_GLOBAL_POOLING = (
    layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D, layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D,
)  # fmt: skip
LAYERS = {
    **dict.fromkeys(_SPATIAL, spatial),
    **dict.fromkeys(_GLOBAL_POOLING, global_pooling),
}
