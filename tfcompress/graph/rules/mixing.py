"""Rules of operations that mix channels and therefore freeze them."""

from keras import layers

from tfcompress.graph.graph import Call
from tfcompress.graph.trace import Trace, described


def normalization(trace: Trace, call: Call) -> None:
    trace.freeze_call(call, f"{described(call)} normalizes over the channels")


def attention(trace: Trace, call: Call) -> None:
    trace.freeze_call(call, f"{described(call)} splits the channels into heads")


def recurrence(trace: Trace, call: Call) -> None:
    trace.freeze_call(call, f"{described(call)} feeds its channels back to itself")


_NORMALIZATION = (
    layers.LayerNormalization, layers.RMSNormalization, layers.Softmax,
    layers.UnitNormalization,
)  # fmt: skip
_ATTENTION = (
    layers.AdditiveAttention, layers.Attention, layers.GroupQueryAttention,
    layers.MultiHeadAttention,
)  # fmt: skip
_RECURRENCE = (
    layers.Bidirectional, layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D,
    layers.GRU, layers.LSTM, layers.RNN, layers.SimpleRNN, layers.TimeDistributed,
)  # fmt: skip
LAYERS = {
    **dict.fromkeys(_NORMALIZATION, normalization),
    **dict.fromkeys(_ATTENTION, attention),
    **dict.fromkeys(_RECURRENCE, recurrence),
}
OPERATIONS = {"softmax": normalization, "logsoftmax": normalization}
