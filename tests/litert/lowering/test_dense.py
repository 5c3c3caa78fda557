"""Every convolution as FULLY_CONNECTED, compared with CONV_2D in the runtime."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.litert.lowering.one_layer import OneLayer, as_dense, made, random_input
from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.runtime import Interpreter, OpResolverType

KERNELS = (OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
ACTIVATIONS = schema.ActivationFunctionType


@st.composite
def convolutions(draw, int8, free=False):
    """Draws a CONV_2D whose output has at least one element."""
    window, stride, dilation = (
        (draw(st.integers(1, most)), draw(st.integers(1, most))) for most in (4, 3, 3)
    )
    padding = draw(st.sampled_from(["SAME", "VALID"]))
    if free:  # others stay CONV_2D
        stride = (1, 1)
    reach = [(n - 1) * d for n, d in zip(window, dilation, strict=True)]
    least = reach if padding == "VALID" else (0, 0)
    sizes = [n + draw(st.integers(1, 9)) for n in least]
    return OneLayer(
        "CONV_2D",
        (draw(st.integers(1, 3)), *sizes, draw(st.integers(1, 9))),
        draw(st.integers(1, 19)),
        window,
        stride,
        dilation,
        padding,
        bits=draw(st.sampled_from([2, 4])),
        int8=int8,
        zero_point=draw(st.integers(-128, 127)),
        activation=draw(
            st.sampled_from([ACTIVATIONS.NONE, ACTIVATIONS.RELU, ACTIVATIONS.RELU6])
        ),
        free=draw(st.sampled_from([(1, 2), (0, 1, 2), (0, 2)])) if free else (),
    )


def run(content, x, resolver):
    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=resolver
    )
    interpreter.resize_tensor_input(
        interpreter.get_input_details()[0]["index"], x.shape
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def content_of(layer):
    return flatbuffer.write(made(layer)[0])


@pytest.mark.parametrize("resolver", KERNELS)
@pytest.mark.parametrize("free", [False, True])
def test_dense_form_of_an_int8_convolution_returns_the_same_codes(free, resolver):
    @settings(max_examples=120, deadline=None, derandomize=True)
    @given(convolutions(int8=True, free=free))
    def check(layer):
        x = random_input(layer)
        expected = run(content_of(layer), x, resolver)
        received = run(as_dense(*made(layer), layer.bits), x, resolver)
        # Where XNNPACK computes one of the two alone, it rounds near ties otherwise:
        # with free sizes, or where the codes of a channel do not fill whole bytes.
        weights = math.prod(layer.window) * layer.shape[-1]
        alone = free or weights * layer.bits % 8
        most = int(bool(alone) and resolver == OpResolverType.AUTO)
        np.testing.assert_allclose(received, expected, rtol=0, atol=most)

    check()


@pytest.mark.parametrize("resolver", KERNELS)
@pytest.mark.parametrize("free", [False, True])
def test_dense_form_of_a_float_convolution_rounds_its_inputs_alone(free, resolver):
    @settings(max_examples=120, deadline=None, derandomize=True)
    @given(convolutions(int8=False, free=free))
    def check(layer):
        x = random_input(layer)
        exact = dataclasses.replace(layer, decoded=True)
        expected = run(content_of(exact), x, resolver)
        model, found = made(layer)
        # An input is rounded to half a step of 255 or 127 steps over its range.
        weights = np.abs(found.codes).reshape(len(found.codes), -1).sum(1) * found.scale
        limit = weights * (np.abs(x).max() / 127 / 2) * 1.05 + 1e-5
        received = run(as_dense(model, found, layer.bits), x, resolver)
        assert received.shape == expected.shape
        assert (np.abs(received - expected) <= limit).all()

    check()
