"""Peak memory of networks small enough to be planned by hand."""

import keras
import pytest
from keras import layers as kl

from tfcompress.litert import float_tflite, latency, peak_memory


def test_peak_memory_of_a_chain_is_that_of_its_largest_step():
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            kl.Conv2D(16, 3, padding="same"),
            kl.Conv2D(8, 3),
        ]
    )
    # The second step: its input and output, and the patches that LiteRT's float
    # convolution multiplies. The memory of the model's inputs is never reused.
    read, written, patches = 32 * 32 * 16, 30 * 30 * 8, 30 * 30 * 9 * 16
    floats = 32 * 32 * 3 + read + written + patches
    assert peak_memory(float_tflite(model)) == pytest.approx(4 * floats, rel=0.001)


def test_peak_memory_includes_tensors_that_are_read_later():
    def net(short_cut):
        inputs = keras.Input((16, 16, 8))
        x = kl.DepthwiseConv2D(3, padding="same", name="a")(inputs)
        y = kl.DepthwiseConv2D(3, padding="same", name="b")(x)
        y = kl.DepthwiseConv2D(3, padding="same", name="c")(y)
        return keras.Model(inputs, kl.Add()([x, y]) if short_cut else y)

    without, with_ = (peak_memory(float_tflite(net(x))) for x in (False, True))
    assert with_ - without == pytest.approx(4 * 16 * 16 * 8, rel=0.01)


def test_peak_memory_refuses_damaged_files():
    with pytest.raises(ValueError, match="LiteRT can run"):
        peak_memory(b"TFL3" * 20)


def test_memory_and_latency_of_free_sizes_need_a_shape():
    def content(size):
        inputs = keras.Input((size, size, 8))
        return float_tflite(keras.Model(inputs, kl.DepthwiseConv2D(3)(inputs)))

    free, fixed = content(None), content(32)
    for measure in (peak_memory, lambda file, **kw: latency([file], runs=1, **kw)):
        with pytest.raises(ValueError, match=r"`shapes` is exp.*\(-1, -1, -1, 8\)"):
            measure(free)
        assert measure(free, shapes=[(1, 32, 32, 8)])
    at_size = peak_memory(free, [(1, 32, 32, 8)])
    assert at_size == pytest.approx(peak_memory(fixed), rel=0.01)
