"""Sizes of operators that read kernels, and what FULLY_CONNECTED cannot compute."""

import dataclasses

import pytest

from tests.litert.lowering.one_layer import OneLayer, made
from tfcompress.litert.lowering.reader import readers

CONV = OneLayer("CONV_2D", (1, 12, 10, 8), 16, (3, 3))


def reader_of(layer, shapes=None):
    model, _ = made(layer)
    (reader,) = readers(model, model.subgraphs[0], shapes or {})
    return reader


@pytest.mark.parametrize(
    ("layer", "shape_class"),
    [
        (CONV, "window"),
        (dataclasses.replace(CONV, window=(1, 3)), "window"),
        (dataclasses.replace(CONV, window=(1, 1)), "1x1"),
        (dataclasses.replace(CONV, window=(1, 1), stride=(2, 1)), "1x1 strided"),
        (OneLayer("DEPTHWISE_CONV_2D", (1, 8, 8, 4), 4, (3, 3)), "depthwise"),
        (OneLayer("FULLY_CONNECTED", (1, 8), 4), "vector"),
        (OneLayer("FULLY_CONNECTED", (1, 5, 8), 4), "1x1"),
    ],
)
def test_reader_has_the_class_of_its_shapes(layer, shape_class):
    assert reader_of(layer).shape_class == shape_class


def test_reader_counts_the_sizes_of_a_strided_convolution():
    reader = reader_of(dataclasses.replace(CONV, stride=(2, 2)))
    weights, places = 3 * 3 * 8 * 16, 6 * 5
    moved = 12 * 10 * 8 + places * 16
    expected = [1, places * weights, weights, moved, places * 3 * 3 * 8]
    assert reader.sizes.tolist() == expected


def test_reader_counts_the_multiplications_of_depthwise_and_grouped_convolutions():
    depthwise = reader_of(OneLayer("DEPTHWISE_CONV_2D", (1, 8, 8, 4), 4, (3, 3)))
    assert depthwise.sizes[1] == 8 * 8 * 4 * 3 * 3
    grouped = reader_of(dataclasses.replace(CONV, groups=4))
    assert grouped.sizes[1] == 12 * 10 * 16 * 3 * 3 * 2


def test_reader_counts_free_sizes_in_a_run():
    layer = dataclasses.replace(CONV, free=(0, 1, 2))
    shapes = {0: (1, 12, 10, 8), 1: (1, 12, 10, 16)}
    fixed = reader_of(CONV).sizes.tolist()
    assert reader_of(layer, shapes).sizes.tolist() == fixed
    assert reader_of(layer).sizes.tolist() != fixed


@pytest.mark.parametrize(
    ("changes", "bits", "obstacle"),
    [
        ({}, 4, ""),
        ({"groups": 4}, 4, "groups of channels"),
        ({"window": (5, 6)}, 4, "more than 25 places"),
        ({"free": (1, 2)}, 4, ""),
        ({"free": (1, 2), "stride": (1, 2)}, 4, "strides along a size that is free"),
        ({"free": (1,), "stride": (1, 2)}, 4, ""),
        ({"free": (0,), "stride": (2, 2)}, 4, ""),
        ({"shape": (1, 12, 10, 3)}, 4, "do not fill whole bytes with 4 bits"),
        ({"shape": (1, 12, 10, 2)}, 2, "do not fill whole bytes with 2 bits"),
        ({"shape": (1, 12, 10, 2)}, 4, ""),
    ],
)
def test_reader_names_what_keeps_a_convolution_as_it_is(changes, bits, obstacle):
    found = reader_of(dataclasses.replace(CONV, **changes)).obstacle(bits)
    assert obstacle in found
    assert bool(found) == bool(obstacle)
