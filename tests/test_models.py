"""The networks run, train, save and give out their maps; their padding and blocks are PyTorch's."""

import functools

import keras
import numpy as np
import pytest
from building import answer, numpy, randomize

from keras_visattn import complexity, layers, models

SIZES = [(224, 224), (160, 256), (97, 131)]
SMALL_HEADS = {"num_heads": 2, "min_key_dim": 4, "key_ratio": 0.25, "value_ratio": 0.25}
small_resnet = functools.partial(models.ResNet, 18, filters=8, classes=4)
small_bottlenecks = functools.partial(models.ResNet, 26, filters=8, classes=4)
small_wide = functools.partial(models.WideResNet, 10, 1, classes=4)
small_mnasnet = functools.partial(models.MnasNet, 0.35, classes=4, dropout=0.0)
NETWORKS = {
    "resnet": small_resnet,
    "resnet-se": functools.partial(small_resnet, attention="se"),
    "resnet-ge": functools.partial(small_resnet, attention="ge", extent=4, parametric=True),
    "resnet-bam": functools.partial(small_resnet, attention="bam", reduction_ratio=4),
    "resnet-cbam": functools.partial(small_bottlenecks, attention="cbam", identity_start=True),
    "resnet-gala": functools.partial(small_resnet, attention="gala", attention_stages=3),
    "resnet-augmented": functools.partial(small_bottlenecks, attention="augmented", **SMALL_HEADS),
    "resnet-local": functools.partial(
        small_bottlenecks, attention="local", num_heads=4, kernel_size=3, stem="attention"
    ),
    "resnet-local-basic": functools.partial(small_resnet, attention="local", num_heads=4),
    "resnext": functools.partial(small_bottlenecks, cardinality=2, width=16),
    "wide": functools.partial(small_wide, dropout=0.1),
    "wide-bam": functools.partial(small_wide, attention="bam"),
    "wide-augmented": functools.partial(small_wide, attention="augmented", **SMALL_HEADS),
    "wide-local": functools.partial(small_wide, attention="local", attention_stages=(2, 3)),
    "mnasnet": small_mnasnet,
    "mnasnet-cbam": functools.partial(small_mnasnet, attention="cbam", attention_stages=(6, 7)),
    "mnasnet-augmented": functools.partial(
        small_mnasnet, attention="augmented", value_ratio=0.2, num_heads=2
    ),
}
OF_EACH_KIND = ["resnet", "resnet-augmented", "resnet-local", "wide-augmented", "mnasnet-augmented"]
each_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_one_network_serves_several_sizes(name):
    model = NETWORKS[name]()
    maps = models.pyramid(model)
    for size in SIZES if "wide" not in name else [(32, 32), (20, 33)]:
        images = np.random.default_rng(0).normal(size=(1, *size, 3)).astype("float32")
        outputs = answer(maps, images)
        for level, values in outputs.items():
            scale = 2 ** int(level[1:])
            assert values.shape[1:3] == tuple(-(-length // scale) for length in size)
            assert np.isfinite(values).all()
        averages = outputs[max(outputs)].mean(axis=(1, 2))
        expected = numpy(model.get_layer("predictions")(averages))
        np.testing.assert_allclose(answer(model, images), expected, atol=1e-5)


@each_network
def test_network_trains_saves_and_reloads(name, tmp_path):
    model = NETWORKS[name]()
    images = np.random.default_rng(0).normal(size=(2, 33, 40, 3)).astype("float32")
    jit_compile = keras.backend.backend() == "jax"
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=jit_compile)
    before = [numpy(weight.value) for weight in model.trainable_weights]
    assert np.isfinite(model.train_on_batch(images, np.array([0, 3])))
    after = [numpy(weight.value) for weight in model.trainable_weights]
    moved = [(old != new).any() for old, new in zip(before, after, strict=True)]
    still = [w.path for w, moves in zip(model.trainable_weights, moved, strict=True) if not moves]
    assert sum(moved) > 0.8 * len(moved), still  # a ReLU of few units may be shut
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path, safe_mode=True)
    np.testing.assert_allclose(answer(loaded, images), answer(model, images), atol=1e-6)
    assert list(models.pyramid(loaded).output) == list(models.pyramid(model).output)


@each_network
def test_without_its_top_a_network_gives_its_last_map(name):
    with keras.StatelessScope(initialize_variables=False):
        model = NETWORKS[name](include_top=False)
        maps = models.pyramid(model).output
        whole = models.pyramid(NETWORKS[name]()).output
    assert model.output is maps[max(maps)]
    assert {k: v.shape for k, v in maps.items()} == {k: v.shape for k, v in whole.items()}


def names_of(kind, network, **arguments):
    """Lists the names of a network's layers of one class, in order."""
    with keras.StatelessScope(initialize_variables=False):
        model = network(**arguments)
    return [layer.name for layer in model.layers if type(layer) is kind]


def test_attention_goes_where_its_paper_puts_it():
    resnet = models.ResNet
    gates = names_of(layers.CBAM, resnet, depth=50, attention="cbam")
    assert len(gates) == 3 + 4 + 6 + 3
    model = small_bottlenecks(attention="cbam")
    before, gate, after = (
        model.get_layer(f"stage2_block1_{name}") for name in ("3_bn", "cbam", "add")
    )
    assert gate.input is before.output
    assert any(gate.output is tensor for tensor in after.input)
    assert names_of(layers.BAM, resnet, depth=18, attention="bam") == [
        "stage1_bam",
        "stage2_bam",
        "stage3_bam",
    ]
    augmented = names_of(layers.AugmentedConv2D, resnet, depth=34, attention="augmented")
    assert len(augmented) == 4 + 6 + 3
    assert all(name.endswith("_1_augmented") for name in augmented)
    local = names_of(layers.LocalSelfAttention2D, resnet, depth=38, attention="local")
    assert len(local) == 2 + 3 + 5 + 2
    some = names_of(
        layers.LocalSelfAttention2D, resnet, depth=38, attention="local", attention_stages=(3, 4)
    )
    assert some == local[-7:]
    expansions = names_of(layers.AugmentedConv2D, models.MnasNet, attention="augmented")
    assert len(expansions) == 2 + 3 + 1
    wide = names_of(layers.AugmentedConv2D, models.WideResNet, attention="augmented")
    assert len(wide) == 3 * 4


def test_all_values_leave_no_convolution():
    with keras.StatelessScope(initialize_variables=False):
        model = models.ResNet(50, "augmented", key_ratio=1, value_ratio=1)
    augmented = [layer for layer in model.layers if isinstance(layer, layers.AugmentedConv2D)]
    assert augmented
    assert all(layer.convolution is None for layer in augmented)


def test_relative_tables_fit_the_images():
    with keras.StatelessScope(initialize_variables=False):
        unknown = models.ResNet(50, "augmented")
        known = models.ResNet(50, "augmented", input_shape=(224, 320, 3))
    widths = {"stage2_block1_2": 20, "stage3_block1_2": 20, "stage4_block2_2": 10}
    for name, width in widths.items():
        side = 7 if "stage4" in name else 14
        assert table_sides(unknown.get_layer(f"{name}_augmented")) == (side, side)
        assert table_sides(known.get_layer(f"{name}_augmented")) == (side, width)


def table_sides(layer):
    """Gives the height and the width that a layer's tables serve."""
    embedding = layer.position_embedding
    tables = embedding.row_table, embedding.column_table
    return tuple((table.shape[0] + 1) // 2 for table in tables)


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        (models.ResNet, {"depth": 20}, "`depth` must be one of .*Received: depth=20"),
        (models.ResNet, {"attention": "self"}, "`attention` must be one of .*'self'"),
        (models.ResNet, {"stem": "patch"}, "`stem` must be one of .*Received: stem='patch'"),
        (models.ResNet, {"kernel_size": 3}, "`attention` must be given .*'kernel_size': 3"),
        (
            models.ResNet,
            {"attention": "cbam", "attention_stages": (1, 5)},
            r"from 1 to 4. Received: attention_stages=\(1, 5\)",
        ),
        (models.ResNet, {"input_shape": (224, 224)}, r"Received: input_shape=\(224, 224\)"),
        (models.ResNet, {"input_shape": (9, 9, None)}, "channels must be known"),
        (models.ResNet, {"depth": 34, "cardinality": 32}, "must be 1 and 64.*cardinality=32"),
        (models.ResNet, {"classes": 0}, "`classes` must be a positive integer"),
        (models.ResNet, {"attention": "cbam", "heads": 3}, "heads"),
        (models.WideResNet, {"depth": 27}, "6. Received: depth=27"),
        (models.WideResNet, {"dropout": 2}, "`dropout` must be a number in"),
        (models.MnasNet, {"attention": "local"}, "`attention` must be one of .*'local'"),
        (models.MnasNet, {"width": 0}, "`width` must be positive. Received: width=0"),
    ],
)
def test_bad_arguments_are_refused(network, arguments, message):
    with pytest.raises(ValueError, match=message), keras.StatelessScope(initialize_variables=False):
        network(**arguments)


def test_pyramid_refuses_a_model_without_levels():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs))
    with pytest.raises(ValueError, match=r'named "P2".*Received: model='):
        models.pyramid(model)


def test_convolutions_pad_as_pytorch():
    import torch

    with keras.StatelessScope(initialize_variables=False):
        strides = {
            layer.name: layer.padding
            for layer in models.ResNet(50).layers
            if isinstance(layer, keras.layers.Conv2D)
            and layer.strides != (1, 1) != layer.kernel_size
        }
    assert set(strides.values()) == {"valid"}
    images = np.random.default_rng(0).normal(size=(1, 33, 40, 3)).astype("float32")
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, models.blocks.convolution(inputs, 4, 7, strides=2, name="conv"))
    kernel = numpy(model.get_layer("conv").kernel)
    expected = torch.nn.functional.conv2d(
        torch.tensor(images.transpose(0, 3, 1, 2)),
        torch.tensor(kernel.transpose(3, 2, 0, 1)),
        stride=2,
        padding=3,
    )
    outputs = answer(model, images).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(outputs, expected.numpy(), atol=1e-4)


def test_channels_first_is_channels_last():
    backend = keras.backend.backend()
    last = small_bottlenecks(attention="augmented", stem="attention", **SMALL_HEADS)
    randomize(last)
    keras.config.set_image_data_format("channels_first")
    try:
        first = small_bottlenecks(
            attention="augmented", stem="attention", input_shape=(3, None, None), **SMALL_HEADS
        )
    finally:
        keras.config.set_image_data_format("channels_last")
    first.set_weights(last.get_weights())
    if backend == "tensorflow":
        return  # its convolutions take channels first on a GPU only
    images = np.random.default_rng(0).normal(size=(1, 33, 40, 3)).astype("float32")
    outputs = answer(first, images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(outputs, answer(last, images), atol=1e-4)


def test_multiply_adds_of_a_network_add_up():
    with keras.StatelessScope(initialize_variables=False):
        profile = complexity.profile(models.ResNet(50), (224, 224, 3))
    assert all(row.macs is not None for row in profile.rows)
    assert profile.macs == 4_089_184_256
