"""BOPs as printed in Liu et al., "Single-path Bit Sharing" (TPAMI 2023)."""

import functools

import keras
import pytest
from keras import layers

from tfcompress.cost import layer_costs, total_cost
from tfcompress.layers import QuantConv2D, QuantDense, QuantDepthwiseConv2D
from tfcompress.quantizers import Uniform

FLOAT = None


def quantizers(bits):
    if bits is FLOAT:
        return {}
    return {"kernel_quantizer": Uniform(bits), "input_quantizer": Uniform(bits)}


def conv(filters, size, stride, bits):
    return QuantConv2D(
        filters, size, stride, "same", use_bias=False, **quantizers(bits)
    )


def classifier(x, classes, bits):
    x = layers.GlobalAveragePooling2D()(x)
    return QuantDense(classes, **quantizers(bits))(x)


def norm_relu(x):
    return layers.ReLU()(layers.BatchNormalization()(x))


def preactivation_block(x, filters, stride, bits):
    inner = norm_relu(x)
    shortcut = conv(filters, 1, stride, bits)(inner) if stride > 1 else x
    inner = norm_relu(conv(filters, 3, stride, bits)(inner))
    return layers.Add()([shortcut, conv(filters, 3, 1, bits)(inner)])


def cifar_resnet(depth, bits):
    ends = bits and 8
    inputs = keras.Input((32, 32, 3))
    x = conv(16, 3, 1, ends)(inputs)
    for filters in (16, 32, 64):
        for block in range((depth - 2) // 6):
            stride = 2 if filters > 16 and block == 0 else 1
            x = preactivation_block(x, filters, stride, bits)
    return keras.Model(inputs, classifier(norm_relu(x), 100, ends))


def resnet18(bits):
    ends = bits and 8
    inputs = keras.Input((224, 224, 3))
    x = norm_relu(conv(64, 7, 2, ends)(inputs))
    x = layers.MaxPooling2D(3, 2, "same")(x)
    for filters in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if filters > 64 and block == 0 else 1
            shortcut = conv(filters, 1, stride, bits)(x) if stride > 1 else x
            x = norm_relu(conv(filters, 3, stride, bits)(x))
            x = layers.Add()([shortcut, conv(filters, 3, 1, bits)(x)])
    return keras.Model(inputs, classifier(x, 1000, ends))


def mobilenet_v2(bits):
    ends = bits and 8
    inputs = keras.Input((224, 224, 3))
    x, width = conv(32, 3, 2, ends)(inputs), 32
    for expansion, filters, repeats, stride in [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]:
        for block in range(repeats):
            if expansion > 1:
                x = conv(width * expansion, 1, 1, bits)(x)
            x = QuantDepthwiseConv2D(
                3, stride if block == 0 else 1, "same", **quantizers(bits)
            )(x)
            x, width = conv(filters, 1, 1, bits)(x), filters
    return keras.Model(inputs, classifier(conv(1280, 1, 1, bits)(x), 1000, ends))


@pytest.mark.parametrize(
    "build, bits, printed",
    [
        (functools.partial(cifar_resnet, 20), FLOAT, "41798.6 M"),
        (functools.partial(cifar_resnet, 20), 4, "674.64 M"),
        (functools.partial(cifar_resnet, 56), FLOAT, "128771.7 M"),
        (functools.partial(cifar_resnet, 56), 4, "2033.6 M"),
        (resnet18, FLOAT, "1857.6 G"),
        (resnet18, 4, "34.71 G"),
        (mobilenet_v2, FLOAT, "308.0 G"),
        (mobilenet_v2, 6, "11.17 G"),
    ],
)
def test_bops_equal_the_papers_to_the_printed_digit(build, bits, printed):
    number, unit = printed.split()
    total = total_cost(layer_costs(build(bits)))
    decimals = len(number.partition(".")[2])
    assert f"{total.bops / {'M': 1e6, 'G': 1e9}[unit]:.{decimals}f}" == number
    assert total.not_counted == ()


def test_macs_of_a_cifar_resnet20():
    stage = 3 * 3 * 16 * 16 * 32 * 32  # a convolution of any stage
    first_of_stage = stage // 2  # half the input channels, stride 2
    shortcuts = 16 * 32 * 16 * 16 + 32 * 64 * 8 * 8
    expected = (
        (3 * 3 * 3 * 16 * 32 * 32)
        + 6 * stage
        + 2 * (first_of_stage + 5 * stage)
        + shortcuts
        + 64 * 100
    )
    assert total_cost(layer_costs(cifar_resnet(20, FLOAT))).macs == expected
