"""Counts of parameters and multiply-adds against arithmetic by hand."""

import functools

import keras
import pytest
from keras import ops

from keras_visattn import complexity, layers, models


def model_of(layer, shape=(8, 6, 4)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


class Doubling(keras.layers.Layer):
    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],))

    def call(self, inputs):
        return inputs * self.scale


def test_convolutions_and_dense():
    model = keras.Sequential(
        [
            keras.Input((8, 6, 4)),
            keras.layers.Conv2D(10, 3, padding="same", groups=2, name="conv"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.DepthwiseConv2D(3, strides=2, padding="same", name="depthwise"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(7, name="dense"),
        ]
    )
    result = complexity.profile(model)
    macs = {row.name: row.macs for row in result.rows if row.macs}
    assert macs == {
        "conv": 8 * 6 * 10 * 9 * 2,
        "depthwise": 4 * 3 * 10 * 9,
        "dense": 10 * 7,
    }
    assert result.macs == sum(macs.values())
    assert result.parameters == (9 * 2 * 10 + 10) + 20 + (9 * 10 + 10) + (10 * 7 + 7)
    assert sum(row.parameters for row in result.rows) == result.parameters


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (keras.layers.MaxPooling2D(), 0),
        (layers.ChannelAttention(2), 2 * 2 * 4 * 2),
        (layers.SqueezeExcite(2), 2 * 4 * 2),
        (layers.SpatialAttention(7), 48 * 49 * 2),
        (layers.CBAM(2, kernel_size=3), 2 * 2 * 4 * 2 + 48 * 9 * 2),
        (layers.GALA(2), 2 * 4 * 2 + 48 * (4 * 2 + 2)),
        (layers.BAM(2), 2 * 4 * 2 + 48 * (4 * 2 + 2 * 9 * 2 * 2 + 2)),
        (layers.GatherExcite(4, reduction_ratio=2), 2 * 2 * 2 * 4 * 2),
        (layers.GatherExcite(4, parametric=True), 9 * 4 * (4 * 3 + 2 * 2)),
        (layers.GatherExcite(parametric=True), 48 * 4),
        (layers.LocalSelfAttention2D(8, 3, num_heads=2), 48 * (3 * 4 * 8 + 3 * 9 * 8)),
        (
            layers.LocalSelfAttention2D(8, 3, 2, strides=2, padding="valid", position=None),
            48 * 3 * 4 * 8 + 6 * 4 * 2 * 9 * 8,
        ),
        (
            layers.LocalAttentionStem2D(8, 4, num_heads=2, num_mixtures=3),
            48 * 5 * 4 * 8 + 3 * (48 * 8 + 16 * 4) + 2 * 8 * (2 * 16) * (16 + 4),
        ),
        (layers.CoordinateChannels2D(), 0),
    ],
)
def test_rule(layer, macs):
    (row,) = complexity.profile(model_of(layer)).rows
    assert row.macs == macs


def test_augmented_conv2d():
    layer = layers.AugmentedConv2D(
        10, 3, total_key_dim=8, total_value_dim=4, num_heads=2, strides=2
    )
    pixels = 4 * 3
    attention = pixels * pixels * (8 + 4) + pixels * (4 + 3) * 8
    projections = pixels * (4 * 20 + 4 * 4)
    convolution = pixels * 9 * 4 * 6
    assert complexity.profile(model_of(layer)).macs == convolution + projections + attention


def test_multi_head_attention():
    layer = layers.MultiHeadAttention(2, 3, value_dim=5)
    query, value = keras.Input((6, 4)), keras.Input((9, 7))
    model = keras.Model([query, value], layer(query, value))
    projections = 6 * 4 * 6 + 9 * 7 * 6 + 9 * 7 * 10 + 6 * 10 * 4
    assert complexity.profile(model).macs == projections + 6 * 9 * 2 * (3 + 5)


def test_multi_head_attention_with_a_mask_and_a_key_by_name():
    layer = layers.MultiHeadAttention(2, 3, use_gate=True)
    query, value, key = keras.Input((6, 4)), keras.Input((9, 7)), keras.Input((9, 5))
    mask = keras.Input((6, 9), dtype="bool")
    outputs = layer(attention_mask=mask, key=key, value=value, query=query)
    projections = 6 * (2 * 4 * 6 + 6 * 4) + 9 * (5 + 7) * 6
    result = complexity.profile(keras.Model([query, value, key, mask], outputs))
    assert result.macs == projections + 6 * 9 * 2 * (3 + 3)


def test_units_and_comparison():
    thin = complexity.profile(
        keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)], name="thin")
    )
    wide = complexity.profile(
        keras.Sequential([keras.Input((5,)), keras.layers.Dense(8)], name="wide")
    )
    assert wide.flops == 2 * wide.macs == 80
    assert str(wide).splitlines()[0].endswith("multiply-adds")
    assert str(wide).splitlines()[-1].endswith(" 40")
    assert wide.table("flops").splitlines()[0].endswith("FLOPs")
    assert wide.table("flops").splitlines()[-1].endswith(" 80")
    assert wide.compare(thin) == (
        "wide against thin: 48 parameters (+100.0%), 40 multiply-adds (+100.0%)"
    )
    with pytest.raises(ValueError, match=r"`unit` must be one of .*Received: unit='watts'"):
        wide.table("watts")


def counted_by_jax(model, shape):
    import jax

    weights = [
        [jax.ShapeDtypeStruct(variable.shape, variable.dtype) for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]
    images = jax.ShapeDtypeStruct((1, *shape), "float32")
    program = jax.jit(lambda weights, x: model.stateless_call(*weights, x)[0])
    return program.lower(weights, images).cost_analysis()["flops"]


def counted_by_pytorch(model, shape):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(ops.zeros((1, *shape)))
    return counter.get_total_flops()


COUNTERS = {"jax": counted_by_jax, "torch": counted_by_pytorch}


@pytest.mark.skipif(keras.backend.backend() not in COUNTERS, reason="the backend has no counter")
@pytest.mark.parametrize(
    "network",
    [
        models.ResNet,
        functools.partial(models.ResNet, 34),
        functools.partial(models.ResNet, cardinality=32, width=4),
    ],
    ids=["resnet50", "resnet34", "resnext50"],
)
def test_agrees_with_the_backends_own_counter(network, monkeypatch):
    # JAX counts no products with what a convolution pads; beside it, padding is no such thing.
    def padded(x, kernel_size, strides, name):
        return x if kernel_size == 1 else keras.layers.ZeroPadding2D(kernel_size // 2)(x)

    monkeypatch.setattr(models.blocks, "pad", padded)
    backend, shape = keras.backend.backend(), (224, 224, 3)
    with keras.StatelessScope(initialize_variables=backend == "torch"):
        model = network()
    counted = COUNTERS[backend](model, shape)
    assert complexity.profile(model, shape).flops == pytest.approx(counted, rel=0.01)


def test_input_shape_sets_the_resolution():
    model = model_of(keras.layers.Conv2D(5, 3, padding="same"), (None, None, 4))
    assert complexity.profile(model, (8, 6, 4)).macs == 48 * 9 * 4 * 5
    result = complexity.profile(model, (None, 16, 6, 4))
    assert result.macs == 96 * 9 * 4 * 5
    assert result.rows[0].output_shape == (1, 16, 6, 5)


def test_nested_and_shared_layers_are_rows_of_their_own():
    inner = model_of(keras.layers.Dense(4, name="dense"))
    inputs = keras.Input((8, 6, 4))
    model = keras.Model(inputs, ops.add(inner(inner(inputs)), inputs))
    before = len(model.layers)
    result = complexity.profile(model)
    dense = [row for row in result.rows if row.class_name == "Dense"]
    assert [row.name for row in dense] == 2 * [f"{inner.name}/dense"]
    assert [row.parameters for row in dense] == [20, 0]
    assert [row.macs for row in dense] == 2 * [48 * 16]
    assert len(model.layers) == before
    assert tuple(inner.get_layer("dense").input.shape) == (None, 8, 6, 4)


def test_unknown_layer_is_named_as_not_counted():
    result = complexity.profile(model_of(Doubling(name="doubling")))
    (row,) = result.rows
    assert row.macs is None
    assert row.parameters == result.parameters == 4
    line = str(result).splitlines()[1]
    assert "doubling" in line
    assert line.endswith("not counted")
    assert "1 not counted" in str(result).splitlines()[-1]


def test_matrix_product_is_named_as_not_counted():
    inputs = keras.Input((6, 4))
    result = complexity.profile(keras.Model(inputs, ops.matmul(inputs, ops.ones((4, 3)))))
    assert [row.macs for row in result.rows] == [None]


@pytest.mark.parametrize("input_shape", [None, (None, 6, 4)])
def test_unknown_size(input_shape):
    model = model_of(keras.layers.Conv2D(5, 3), (None, None, 4))
    with pytest.raises(ValueError, match=r"must be known.*Received: input_shape="):
        complexity.profile(model, input_shape)


def test_shape_that_does_not_fit():
    model = model_of(keras.layers.Conv2D(5, 3))
    with pytest.raises(ValueError, match=r"axes of the model's inputs.*Received: input_shape="):
        complexity.profile(model, (8, 6))
    with pytest.raises(ValueError, match=r"fit the weights.*Received: layer="):
        complexity.profile(model, (8, 6, 3))


def test_model_without_a_graph():
    with pytest.raises(ValueError, match=r"functional or sequential.*Received: model="):
        complexity.profile(keras.Sequential([keras.layers.Dense(3)]))
