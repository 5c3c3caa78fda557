"""Models that version 0.1.0 saved before its files were moved, loaded today.

`saved_models/NAME.keras` is a trained student, `NAME_in_search.keras` the same student
after the first of three epochs, `NAME_finalized.keras` its inference form. All have
seen 512 digits of 14 x 14 pixels. `expected.npz` holds 16 of these images and the
predictions of that version.
"""

import pathlib

import keras
import numpy as np
import pytest

import tfcompress as tfc

FOLDER = pathlib.Path(__file__).parent / "saved_models"
SAVED = np.load(FOLDER / "expected.npz")
NAMES = sorted(set(SAVED.files) - {"images"})
STUDENTS = [name for name in NAMES if not name.endswith("_finalized")]
SEARCHED = [
    # Another search of the same scheme is quick.
    pytest.param(name, marks=[pytest.mark.slow] * name.startswith("size_kmeans"))
    for name in STUDENTS
    if name.endswith("_in_search")
]


def load(name):
    return keras.models.load_model(FOLDER / f"{name}.keras")


def images_for(model):
    return SAVED["images"].reshape((-1, *model.input_shape[1:]))


@pytest.mark.parametrize("name", NAMES)
def test_old_models_predict_as_they_did(name):
    model = load(name)
    predictions = model(images_for(model), training=False)
    np.testing.assert_allclose(predictions, SAVED[name], atol=2e-5)


@pytest.mark.parametrize(
    "name", [name for name in STUDENTS if f"{name}_finalized" in NAMES]
)
def test_old_students_have_the_inference_form_that_they_had(name):
    model = tfc.finalize(load(name))
    predictions = model(images_for(model), training=False)
    np.testing.assert_allclose(predictions, SAVED[f"{name}_finalized"], atol=2e-5)


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.filterwarnings("ignore")
def test_old_students_train_on(name):
    student = load(name)
    if name.startswith(("bit", "decomposition", "size")):
        assert student.restored
    images = images_for(student)
    history = student.fit(images, np.arange(16) % 10, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert not [
        message
        for layer in student.layers
        if isinstance(layer, tfc.layers.TrainingForm)
        for message in layer.unfinished()
    ]
