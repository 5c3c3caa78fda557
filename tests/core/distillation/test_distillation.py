"""Loss of distilled students, against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfcompress as tfc
from tests.core.distillation.distilled import (
    CROSSENTROPY,
    TERNARY,
    crossentropies,
    losses_of,
    soft_losses,
)
from tests.small_net import small_net
from tfcompress.core.distillation.soft_loss import SoftLoss


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"weight": 0.0},
        {"weight": 1.1},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"`{name}`.*Received: {name}="):
        tfc.Distillation(**settings)


def test_settings_are_saved_without_the_teacher(trained):
    settings = tfc.Distillation(2.0, 0.5, trained)
    config = keras.saving.serialize_keras_object(settings)
    loaded = keras.saving.deserialize_keras_object(config)
    assert loaded == tfc.Distillation(2.0, 0.5)
    assert loaded.teacher is None


@pytest.mark.parametrize("distill", ["yes", 0.9, keras.Sequential()])
def test_compress_refuses_other_types_of_distill(trained, distill):
    with pytest.raises(TypeError, match=r"True, None or tfc\.Distillation"):
        tfc.compress(trained, TERNARY, distill=distill)


def test_teacher_of_another_type_is_refused():
    with pytest.raises(TypeError, match="Keras 3 model.*function"):
        tfc.Distillation(teacher=small_net)


def test_without_distill_the_loss_is_the_compiled_one(trained, batch):
    for distill in (None, False):
        student = tfc.compress(trained, TERNARY, distill=distill)
        student.compile("sgd", CROSSENTROPY)
        total, outputs, _ = losses_of(student, *batch)
        expected = crossentropies(batch[1], outputs).mean()
        np.testing.assert_allclose(total, expected, rtol=1e-5)
        assert "distillation_loss" not in [m.name for m in student.metrics]


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_loss_of_logits_is_the_published_equation(trained, batch, temperature, weight):
    distill = tfc.Distillation(temperature, weight)
    student = tfc.compress(trained, TERNARY, distill=distill)
    student.compile("sgd", CROSSENTROPY)
    total, outputs, others = losses_of(student, *batch)
    assert others == []
    soft = soft_losses(trained.predict(batch[0], verbose=0), outputs, temperature)
    hard = crossentropies(batch[1], outputs)
    expected = (1 - weight) * hard.mean() + weight * soft.mean()
    np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_softmax_outputs_have_the_loss_of_their_logits(trained, batch):
    probabilities = keras.Model(trained.input, layers.Softmax()(trained.output))
    student = tfc.compress(probabilities, TERNARY, distill=True)
    student.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    total, outputs, _ = losses_of(student, *batch)
    logits = trained.predict(batch[0], verbose=0)
    soft = soft_losses(logits, np.log(outputs)).mean()
    hard = crossentropies(batch[1], np.log(outputs)).mean()
    np.testing.assert_allclose(total, 0.1 * hard + 0.9 * soft, rtol=1e-4)


def test_sample_weights_hold_for_both_terms(trained, batch):
    weights = np.linspace(0, 2, 32).astype("float32")
    student = tfc.compress(trained, TERNARY, distill=True)
    student.compile("sgd", CROSSENTROPY)
    total, outputs, _ = losses_of(student, *batch, sample_weight=weights)
    soft = soft_losses(trained.predict(batch[0], verbose=0), outputs)
    expected = 0.1 * crossentropies(batch[1], outputs) + 0.9 * soft
    np.testing.assert_allclose(total, np.mean(weights * expected), rtol=1e-4)


def two_heads(trained, as_dict):
    features = trained.get_layer("gap").output
    outputs = {
        "classes": trained.output,
        "size": layers.Dense(2, name="size")(features),
    }
    if not as_dict:
        outputs = list(outputs.values())
    return keras.Model(trained.input, outputs)


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("losses", ["both", "classes"])
def test_outputs_share_the_weight_and_have_their_own_losses(
    trained, batch, as_dict, losses
):
    model = two_heads(trained, as_dict)
    student = tfc.compress(model, TERNARY, distill=True)
    classes, size = ("classes", "size") if as_dict else (0, 1)
    names = ("classes", "size") if as_dict else ("head", "size")
    both = losses == "both"
    student.compile(
        "sgd",
        dict(zip(names, (CROSSENTROPY, "mse" if both else None), strict=True)),
        loss_weights=dict(zip(names, (0.5, 3.0), strict=True)),
    )
    x, labels = batch
    sizes = np.random.default_rng(0).normal(size=(32, 2)).astype("float32")
    y = {"classes": labels, "size": sizes} if as_dict else [labels, sizes]
    total, outputs, _ = losses_of(student, x, y)
    teacher = model.predict(x, verbose=0)

    soft = soft_losses(teacher[classes], outputs[classes]).mean()
    hard = crossentropies(labels, outputs[classes]).mean()
    expected = 0.5 * (0.1 * hard + 0.9 * soft)
    if both:
        soft, hard = (
            np.mean((np.array(outputs[size]) - target) ** 2)
            for target in (teacher[size], sizes)
        )
        expected += 3.0 * (0.1 * hard + 0.9 * soft)
    np.testing.assert_allclose(total, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "scheme",
    [
        tfc.PrunedTernary(discrepancy=0.3, weight_decay=0.01),
        pytest.param(
            tfc.BitSharing(bops="1/30", weight_decay=0.01), marks=pytest.mark.slow
        ),
        tfc.SizeConstrained(value_bits="1/20", weight_decay=0.01),
        tfc.Uniform(4, 4, weight_decay=0.01),
    ],
    ids=lambda scheme: type(scheme).__name__,
)
def test_other_losses_keep_their_gradients_in_full(trained, batch, scheme):
    trained.get_layer("head").kernel_regularizer = keras.regularizers.L2(0.1)
    student = tfc.compress(trained, scheme, distill=True)
    student.compile("sgd", CROSSENTROPY)
    for layer in student.layers:
        if isinstance(layer, tfc.layers.BopsBudget):
            layer.strength.assign(2.0)
    x, y = batch
    teacher = trained.predict(x, verbose=0)
    soft_loss = SoftLoss("categorical", (None, None), 4.0)
    with tf.GradientTape(persistent=True) as tape, student.training_run.own_pass():
        outputs = student(x, training=True)
        total = student.compute_loss(x, y, outputs, training=True)
        others = sum(ops.sum(loss) for loss in student.losses)
        alone = 0.1 * CROSSENTROPY(y, outputs) + 0.9 * soft_loss(teacher, outputs)
    assert len(student.losses) > 0
    np.testing.assert_allclose(total, alone + others, rtol=1e-5)
    for variable in student.trainable_variables:
        full, first, second = (
            tape.gradient(part, variable.value, unconnected_gradients="zero")
            for part in (total, alone, others)
        )
        np.testing.assert_allclose(
            full, first + second, rtol=1e-3, atol=1e-6, err_msg=variable.path
        )


def test_default_teacher_is_the_model_before_separable_layers_are_split(batch):
    inputs = keras.Input((28, 28, 1))
    x = layers.SeparableConv2D(4, 3, name="separable")(inputs)
    x = layers.Dense(10, name="head")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    student = tfc.compress(model, TERNARY, distill=True)
    student.compile("sgd", CROSSENTROPY)
    total, outputs, _ = losses_of(student, *batch)
    soft = soft_losses(model.predict(batch[0], verbose=0), outputs).mean()
    expected = 0.1 * crossentropies(batch[1], outputs).mean() + 0.9 * soft
    np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_another_teacher_may_have_another_structure_and_end(trained, batch):
    """Its probabilities and the student's logits are class scores alike."""
    teacher = keras.Sequential([trained, layers.Softmax()])
    student = tfc.compress(small_net(), TERNARY, tfc.Distillation(teacher=teacher))
    student.compile("sgd", CROSSENTROPY)
    total, outputs, _ = losses_of(student, *batch)
    soft = soft_losses(trained.predict(batch[0], verbose=0), outputs).mean()
    expected = 0.1 * crossentropies(batch[1], outputs).mean() + 0.9 * soft
    np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_distillation_loss_in_the_logs_is_a_mean_over_samples(trained, batch):
    # Without a sparsity its weights do not change unless they learn.
    student = tfc.compress(trained, tfc.PrunedTernary(), distill=True)
    student.compile(keras.optimizers.SGD(0.0), CROSSENTROPY)
    teacher = trained.predict(batch[0], verbose=0)
    with student.training_run.own_pass():
        outputs = [student(x, training=True) for x in np.split(batch[0], [20])]
    expected = soft_losses(teacher, np.concatenate(outputs)).mean()
    history = student.fit(*batch, batch_size=20, shuffle=False, verbose=0).history
    # The two batches have 20 and 12 samples; batch normalization sees each alone.
    np.testing.assert_allclose(history["distillation_loss"], expected, rtol=1e-4)
