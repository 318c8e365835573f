"""Attention goes into the models of keras.applications, KerasHub and KerasCV."""

import keras
import keras_cv
import keras_hub
import numpy as np
import pytest
from building import answer, numpy
from test_reference import sample

from keras_visattn import layers, surgery, visualize
from keras_visattn.surgery.backbones import PyramidBackbone
from keras_visattn.surgery.hub_backbone import HubBackbone

pytestmark = [  # what the libraries do themselves
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "(?s).*The structure of `inputs` doesn't match:UserWarning",  # KerasCV's detector in `fit`
        "Gradients do not exist for variables .'post_bn:UserWarning",  # KerasCV's detector
        "Skipping variable loading for optimizer:UserWarning",  # KerasHub's tasks, when they load
        "`compile..` was not called as part of model loading:UserWarning",  # KerasHub's tasks
    )
]
SHAPE = (64, 64, 3)
IMAGES = sample(2, *SHAPE)
LABELS = np.array([1, 2])


def close(found, expected):
    for a, b in zip(*map(keras.tree.flatten, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))


def gates_of(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, layers.CBAM)]


APPLICATIONS = {  # where the gates go, and how many there are
    "ResNet50": ("block", 16),
    "ResNet50V2": ("block", 16),
    "MobileNetV2": ("block", 10),
    "EfficientNetB0": ("block", 9),
    "VGG16": ("stage", 6),
    "DenseNet121": ("stage", 5),
    "Xception": ("block", 12),
    "ConvNeXtTiny": ("block", 18),
}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications_take_attention_and_train(name):
    side = 71 if name == "Xception" else 32
    where, count = APPLICATIONS[name]
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(side, side, 3), classes=4, classifier_activation=None
    )
    images = 100 * sample(2, side, side, 3)
    gated = surgery.add_cbam(model, where)
    assert len(gates_of(gated)) == count
    close(answer(gated, images), answer(model, images))
    edited = surgery.replace_convolutions(gated, last=1, num_heads=2, kernel_size=3)
    if len(surgery.find(gated, surgery.is_spatial_convolution)) > 1:
        sizes = {"total_value_dim": 8, "total_key_dim": 16, "num_heads": 2}
        edited = surgery.augment_convolutions(edited, last=1, **sizes)
    before = {v.path: numpy(v) for v in edited.trainable_variables}
    edited.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert np.isfinite(edited.train_on_batch(images, LABELS))
    kinds = (layers.CBAM, layers.LocalSelfAttention2D, layers.AugmentedConv2D)
    for layer in edited._flatten_layers():
        if isinstance(layer, kinds):
            weights = layer.trainable_variables
            assert any((before[v.path] != numpy(v)).any() for v in weights), layer.name


def hub_resnet(**arguments):
    return keras_hub.models.ResNetBackbone(
        *([64], [3], [64, 64, 64, 64], [1, 1, 1, 1], [1, 2, 2, 2], "basic_block"),
        **{"image_shape": SHAPE, **arguments},
    )


def hub_efficientnet():
    return keras_hub.models.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0, 1.0],
        stackwise_depth_coefficients=[1.0, 1.0],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        stackwise_block_types=["v1", "v1"],
        stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[2, 2],
        stackwise_input_filters=[32, 16],
        stackwise_output_filters=[16, 16],
        stackwise_expansion_ratios=[1, 4],
        stackwise_strides=[1, 2],
        image_shape=SHAPE,
    )


def cv_resnet(cls=keras_cv.models.ResNetV2Backbone):
    return cls(
        stackwise_filters=[64, 64, 64, 64],
        stackwise_blocks=[2, 2, 2, 2],
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=True,
        input_shape=SHAPE,
    )


def cv_efficientnet():
    return keras_cv.models.EfficientNetV1Backbone(
        include_rescaling=True,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[2, 2],
        stackwise_input_filters=[32, 16],
        stackwise_output_filters=[16, 16],
        stackwise_expansion_ratios=[1, 4],
        stackwise_strides=[1, 2],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        input_shape=SHAPE,
    )


def cv_densenet():
    return keras_cv.models.DenseNetBackbone(
        stackwise_num_repeats=[2, 2], include_rescaling=True, input_shape=SHAPE
    )


def cv_cspdarknet():
    return keras_cv.models.CSPDarkNetBackbone(
        stackwise_channels=[16, 16, 16, 16],
        stackwise_depth=[1, 1, 1, 1],
        include_rescaling=True,
        input_shape=SHAPE,
    )


BACKBONES = {
    "hub ResNet": (hub_resnet, "block", 4),
    "hub DenseNet": (
        *(lambda: keras_hub.models.DenseNetBackbone([2, 2], image_shape=SHAPE), "stage", 3),
    ),
    "hub VGG": (
        *(lambda: keras_hub.models.VGGBackbone([1, 1], [8, 16], image_shape=SHAPE), "stage", 3),
    ),
    "hub EfficientNet": (hub_efficientnet, "block", 2),
    "cv ResNet": (lambda: cv_resnet(keras_cv.models.ResNetBackbone), "block", 8),
    "cv ResNetV2": (cv_resnet, "stage", 4),
    "cv DenseNet": (cv_densenet, "stage", 3),
    "cv EfficientNetV1": (cv_efficientnet, "block", 2),
    "cv CSPDarkNet": (cv_cspdarknet, "stage", 5),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_take_gates_and_keep_their_pyramid(name, tmp_path):
    make, where, count = BACKBONES[name]
    model = make()
    expected = answer(model, IMAGES)
    gated = surgery.add_cbam(model, where, reduction_ratio=4)
    assert len(gates_of(gated)) == count
    close(answer(gated, IMAGES), expected)
    if name.startswith("hub"):
        assert isinstance(gated, HubBackbone)
        levels = {key: x.shape for key, x in getattr(model, "pyramid_outputs", {}).items()}
        assert {key: x.shape for key, x in gated.pyramid_outputs.items()} == levels
    else:
        assert isinstance(gated, PyramidBackbone)
        for level, layer in model.pyramid_level_inputs.items():
            shape = gated.get_layer(gated.pyramid_level_inputs[level]).output.shape
            assert shape == model.get_layer(layer).output.shape
    if name == "cv CSPDarkNet":
        return  # its lambdas read a module's names, which no file holds
    gated.save(tmp_path / "gated.keras")
    loaded = keras.saving.load_model(tmp_path / "gated.keras")
    assert type(loaded) is type(gated)
    close(answer(loaded, IMAGES), expected)


def test_a_pyramids_level_is_gated_where_its_layer_is():
    model = cv_resnet()
    name = model.pyramid_level_inputs["P3"]
    gated = surgery.insert_after(model, name, layers.CBAM(name="gate"))
    assert gated.pyramid_level_inputs["P3"] == f"{name}_gate"
    gated = surgery.insert_after(hub_resnet(), "stack1_block0_out", layers.CBAM(name="gate"))
    assert gated.pyramid_outputs["P3"]._keras_history.operation.name == "stack1_block0_out_gate"


def trains_and_reloads(model, tmp_path, fit, inputs=IMAGES):
    weights = gates_of(model)[-1].trainable_variables
    before = [numpy(v) for v in weights]
    fit(model)
    assert any((numpy(v) != value).any() for v, value in zip(weights, before, strict=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    close(answer(loaded, inputs), answer(model, inputs))


@pytest.mark.parametrize("library", ["hub", "cv"])
def test_a_classifier_keeps_its_class_and_its_head(library, tmp_path):
    if library == "hub":
        cls, backbone = keras_hub.models.ResNetImageClassifier, hub_resnet()
    else:
        cls, backbone = keras_cv.models.ImageClassifier, cv_resnet()
    model = cls(backbone=backbone, num_classes=4)
    gated = surgery.add_cbam(model)
    assert type(gated) is cls and len(gates_of(gated.backbone)) > 3
    close(answer(gated, IMAGES), answer(model, IMAGES))
    gated_maps, maps = (visualize.grad_cam(m, IMAGES) for m in (gated, model))
    assert maps.max() == 1 and maps.shape == IMAGES.shape[:3]
    np.testing.assert_allclose(gated_maps, maps, atol=1e-4)
    assert len(visualize.attention_maps(gated, IMAGES)) == len(gates_of(gated))
    if library == "cv":
        gated.compile("sgd", "sparse_categorical_crossentropy")
    trains_and_reloads(gated, tmp_path, lambda model: model.train_on_batch(IMAGES, LABELS))


def test_a_hub_backbone_keeps_its_presets_and_serves_in_a_detector(tmp_path):
    model = hub_resnet()
    gated = surgery.add_cbam(model)
    gated.save_to_preset(tmp_path / "preset")
    loaded = keras_hub.models.Backbone.from_preset(str(tmp_path / "preset"))
    assert isinstance(loaded, HubBackbone)
    close(answer(loaded, IMAGES), answer(gated, IMAGES))
    encoder = keras_hub.models.RetinaNetBackbone(gated, 3, 5, use_p5=True)
    assert list(encoder.pyramid_outputs) == ["P3", "P4", "P5"]
    twice = surgery.insert_after(gated, "stack0_block0_out", layers.CBAM(name="gate"))
    assert len(gates_of(twice)) == 5 and twice.image_shape == SHAPE


def test_a_cv_detector_keeps_its_class_trains_and_reloads(tmp_path):
    model = keras_cv.models.RetinaNet(cv_resnet(), 4, "xywh")
    gated = surgery.add_cbam(model)
    assert type(gated) is type(model) and len(gates_of(gated.backbone)) == 8
    inputs = {"images": IMAGES}
    close(answer(gated, inputs), answer(model, inputs))
    gated.compile(
        classification_loss="focal", box_loss="smoothl1", optimizer="sgd", jit_compile=False
    )
    boxes = np.array([[[1, 1, 20, 20]], [[5, 5, 30, 30]]], "float32")
    labels = {"boxes": boxes, "classes": np.ones((2, 1), "float32")}
    trains_and_reloads(gated, tmp_path, lambda model: model.fit(IMAGES, labels, verbose=0), inputs)


def test_what_cannot_be_made_again_is_refused_by_name():
    model = keras_cv.models.MobileNetV3Backbone(
        stackwise_expansion=[1, 4],
        stackwise_filters=[16, 24],
        stackwise_stride=[2, 2],
        stackwise_kernel_size=[3, 3],
        stackwise_se_ratio=[0.25, None],
        stackwise_activation=["relu", "relu"],
        include_rescaling=True,
        input_shape=SHAPE,
    )
    with pytest.raises(ValueError, match=r"replace it.*a SqueezeAndExcite2D"):
        surgery.add_cbam(model, "stage")
    rest = surgery.replace(
        model, keras_cv.layers.SqueezeAndExcite2D, layers.SqueezeExcite(reduction_ratio=4)
    )
    assert numpy(rest(IMAGES)).shape == (2, 8, 8, 144)


def test_a_layer_that_hides_convolutions_is_named():
    model = cv_cspdarknet()
    with pytest.raises(ValueError, match="hide convolutions out of reach: dark2_csp"):
        surgery.find(model, "dark2_csp/*")
    assert "dark2_csp" in str(surgery.report(model, surgery.add_cbam(model, "stage")))
