"""Export of files that compute with integers throughout."""

import pathlib
from typing import Any

import keras

import tfcompress as tfc


def export_int8(tiny: keras.Model, folder: pathlib.Path, x: Any) -> dict[str, Any]:
    """Exports "int8.tflite", with samples for ranges and verification.

    Returns:
        The report of `tfcompress.export`.
    """
    return tfc.export(
        tiny,
        folder / "int8.tflite",
        verify=x,
        optimize="latency",
        activations="int8",
        representative_data=x,
    )
