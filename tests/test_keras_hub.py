"""Models of KerasHub: from the plan to the file, with weights that are not trained."""

import keras
import numpy as np
import pytest

import tfcompress as tfc

keras_hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed")
pytestmark = pytest.mark.slow
M = keras_hub.models


def resnet_backbone(filters, size):
    return M.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=filters,
        stackwise_num_blocks=[1] * len(filters),
        stackwise_num_strides=[1] + [2] * (len(filters) - 1),
        block_type="basic_block",
        image_shape=(size, size, 3),
    )


def resnet():
    return M.ResNetImageClassifier(resnet_backbone([64, 32], 32), num_classes=4)


def mobilenet():
    backbone = M.MobileNetBackbone(
        stackwise_expansion=[[8, 16], [24]],
        stackwise_num_blocks=[2, 1],
        stackwise_num_filters=[[8, 8], [16]],
        stackwise_kernel_size=[[3, 3], [5]],
        stackwise_num_strides=[[2, 1], [1]],
        stackwise_se_ratio=[[None, None], [0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish"]],
        stackwise_padding=[[1, 1], [2]],
        input_num_filters=8,
        input_activation="hard_swish",
        output_num_filters=32,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        squeeze_and_excite=0.5,
        last_layer_filter=16,
        image_shape=(32, 32, 3),
    )
    return M.MobileNetImageClassifier(backbone, num_classes=4)


def efficientnet():
    backbone = M.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * 3,
        stackwise_depth_coefficients=[1.0] * 3,
        stackwise_squeeze_and_excite_ratios=[0.25] * 3,
        stackwise_kernel_sizes=[3] * 3,
        stackwise_num_repeats=[1] * 3,
        stackwise_input_filters=[8, 8, 16],
        stackwise_output_filters=[8, 16, 16],
        stackwise_expansion_ratios=[1, 2, 2],
        stackwise_strides=[1, 2, 1],
        stackwise_block_types=["v1"] * 3,
        stackwise_force_input_filters=[0] * 3,
        stackwise_nores_option=[False] * 3,
        image_shape=(32, 32, 3),
    )
    return M.EfficientNetImageClassifier(backbone, num_classes=4)


def vision_transformer():
    backbone = M.ViTBackbone(
        image_shape=(32, 32, 3),
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
    )
    return M.ViTImageClassifier(backbone, num_classes=4)


def segmenter():
    backbone = M.DeepLabV3Backbone(
        image_encoder=resnet_backbone([64, 16, 16, 16], 64),
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P4",
        dilation_rates=[6, 12, 18],
        upsampling_size=4,
        image_shape=(64, 64, 3),
    )
    return M.DeepLabV3ImageSegmenter(backbone, num_classes=2)


def detector():
    backbone = M.RetinaNetBackbone(
        image_encoder=resnet_backbone([64, 16, 16, 16], 64),
        min_level=3,
        max_level=4,
        use_p5=False,
        image_shape=(64, 64, 3),
    )
    anchors = keras_hub.layers.AnchorGenerator(
        bounding_box_format="yxyx",
        min_level=3,
        max_level=4,
        num_scales=3,
        aspect_ratios=[0.5, 1.0, 2.0],
        anchor_size=4.0,
    )
    return M.RetinaNetObjectDetector(backbone, num_classes=2, anchor_generator=anchors)


def bert():
    backbone = M.BertBackbone(
        vocabulary_size=60,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=12,
    )
    return M.BertTextClassifier(backbone, num_classes=4)


def samples(model, count=8):
    """Arrays of a model's inputs; sequences have 12 places, images 64 x 64."""
    rng = np.random.default_rng(0)

    def of_input(x):
        size = 12 if "int" in x.dtype else 64
        shape = (count, *(size if n is None else n for n in x.shape[1:]))
        if "int" in x.dtype:
            return rng.integers(0, 2, shape).astype("int32")
        return rng.uniform(0, 1, shape).astype("float32")

    return keras.tree.map_structure(of_input, model.input)


# Largest shares of the weights that are left alone: in normalization, in layers that no
# output depends on, and in embeddings of positions, which are constants in a file.
SHARES = {
    resnet: 0.02,
    mobilenet: 0.03,
    efficientnet: 0.17,
    vision_transformer: 0.06,
    segmenter: 0.03,
    detector: 0.01,
    bert: 0.06,
}


@pytest.mark.filterwarnings("ignore:.*of the weights are left alone")
@pytest.mark.filterwarnings("ignore:.*nothing was trained after it")
@pytest.mark.parametrize("make", SHARES)
def test_graph_of_a_task_is_compressed_to_a_proven_file(make, tmp_path):
    keras.utils.set_random_seed(0)
    task = make()
    model = keras.Model(task.input, task.output)
    scheme = tfc.PrunedTernary()
    rows = tfc.plan(model, scheme).rows
    left_alone = sum(row.layer.count_params() for row in rows if row.config is None)
    assert left_alone <= SHARES[make] * model.count_params()
    student, inputs = tfc.compress(model, scheme), samples(model)
    outputs = model.predict(inputs, verbose=0)
    targets = keras.tree.map_structure(lambda y: 0.5 * y, outputs)
    student.compile("adam", "mse")
    student.fit(inputs, targets, batch_size=4, epochs=1, verbose=0)
    path = tmp_path / "tiny.tflite"
    report = tfc.export(tfc.finalize(student), path, verify=inputs)
    assert report["agreement"]["max_abs_diff"] < 1e-4


def test_error_for_a_task_names_its_graph():
    task = M.ResNetImageClassifier(resnet_backbone([64], 32), num_classes=4)
    with pytest.raises(
        ValueError, match=r"keras\.Model\(model\.input, model\.output\)"
    ):
        tfc.compress(task, tfc.PrunedTernary())


def test_graph_of_a_backbone_is_compressed():
    backbone = resnet_backbone([64], 32)
    graph = r"keras\.Model\(model\.inputs, model\.outputs\)"
    with pytest.raises(ValueError, match=graph):
        tfc.compress(backbone, tfc.PrunedTernary())
    backbone = keras.Model(backbone.input, backbone.output)
    student = tfc.compress(backbone, tfc.PrunedTernary())
    inputs = samples(backbone)
    shape = backbone.predict(inputs, verbose=0).shape
    assert student.predict(inputs, verbose=0).shape == shape
