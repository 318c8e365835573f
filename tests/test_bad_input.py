"""Bad input gets a ValueError that says what must hold and what was received."""

import keras
import numpy as np
import pytest

from keras_visattn import layers, ops

MAP = (2, 6, 5, 16)
BAD_ARGUMENTS = [
    ("ChannelAttention", {"reduction_ratio": 0}),
    ("ChannelAttention", {"pooling": ("avg", "median")}),
    ("ChannelAttention", {"pooling": ()}),
    ("ChannelAttention", {"pooling": ("avg", "avg")}),
    ("SpatialAttention", {"kernel_size": 4}),
    ("SpatialAttention", {"data_format": "channels"}),
    ("CBAM", {"channel": False, "spatial": False}),
    ("CBAM", {"order": "both"}),
    ("CBAM", {"kernel_size": (3, 2)}),
    ("SqueezeExcite", {"reduction_ratio": -1}),
    ("GatherExcite", {"extent": 3, "parametric": True}),
    ("GatherExcite", {"extent": 0}),
    ("GatherExcite", {"identity_start": True}),
    ("BAM", {"dilation_rate": 0}),
    ("GALA", {"reduction_ratio": 1.5}),
    ("SinusoidalPositionEncoding", {"max_wavelength": 0}),
    ("RelativePositionEmbedding2D", {"max_height": 0}),
    ("RelativePositionEmbedding2D", {"extrapolation": "wrap"}),
    ("AugmentedConv2D", {"filters": 0, "kernel_size": 3}),
    ("AugmentedConv2D", {"filters": 64, "kernel_size": (3, 0)}),
    ("AugmentedConv2D", {"filters": 64, "kernel_size": 3, "key_ratio": 1.5}),
    ("AugmentedConv2D", {"filters": 128, "kernel_size": 3, "value_ratio": -0.1}),
    ("AugmentedConv2D", {"filters": 64, "kernel_size": 3, "value_ratio": 0.0}),
    ("AugmentedConv2D", {"filters": 64, "kernel_size": 3, "total_value_dim": 12}),
    ("AugmentedConv2D", {"filters": 64, "kernel_size": 3, "total_value_dim": 128}),
    ("AugmentedConv2D", {"filters": 128, "kernel_size": 3, "key_ratio": 0.2, "total_key_dim": 8}),
    ("AugmentedConv2D", {"filters": 128, "kernel_size": 3, "position": "absolute"}),
    ("AugmentedConv2D", {"filters": 128, "kernel_size": 3, "max_height": 0}),
    ("LocalSelfAttention2D", {"filters": 20}),
    ("LocalSelfAttention2D", {"filters": 24}),
    ("LocalSelfAttention2D", {"filters": 16, "kernel_size": 4}),
    ("LocalSelfAttention2D", {"filters": 16, "padding": "full"}),
    ("LocalSelfAttention2D", {"filters": 16, "strides": 0}),
    ("LocalAttentionStem2D", {"filters": 10}),
    ("LocalAttentionStem2D", {"filters": 8, "num_mixtures": 0}),
    ("MultiHeadAttention", {"num_heads": 0, "key_dim": 4}),
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 4, "value_dim": 0}),
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 4, "dropout": 1.5}),
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 4, "attention_axes": "1"}),
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 4, "flash_attention": "auto"}),
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 4, "flash_attention": True, "dropout": 0.5}),
]


@pytest.mark.parametrize(("name", "arguments"), BAD_ARGUMENTS, ids=str)
def test_bad_argument(name, arguments):
    with pytest.raises(ValueError, match=r"must .*Received: "):
        getattr(layers, name)(**arguments)


IMAGE_LAYERS = {
    "ChannelAttention": {},
    "SpatialAttention": {},
    "CBAM": {},
    "SqueezeExcite": {},
    "GatherExcite": {},
    "BAM": {},
    "GALA": {},
    "CoordinateChannels2D": {},
    "AugmentedConv2D": {"filters": 128, "kernel_size": 3},
    "LocalSelfAttention2D": {"filters": 16},
    "LocalAttentionStem2D": {"filters": 16},
}


@pytest.mark.parametrize("name", IMAGE_LAYERS)
@pytest.mark.parametrize("shape", [(2, 6, 16), (2, 6, 5, 4, 16), (2, 0, 5, 16), (2, 6, 5, None)])
def test_bad_input_shape(name, shape):
    layer = getattr(layers, name)(**IMAGE_LAYERS[name])
    with pytest.raises(ValueError, match=r"must .*Received: "):
        layer.compute_output_shape(shape)
    with pytest.raises(ValueError, match=r"must .*Received: "):
        layer.build(shape)


@pytest.mark.parametrize("name", ["AugmentedConv2D", "LocalSelfAttention2D"])
def test_valid_window_larger_than_the_image(name):
    arguments = {**IMAGE_LAYERS[name], "kernel_size": 7, "padding": "valid"}
    layer = getattr(layers, name)(**arguments)
    with pytest.raises(ValueError, match=r"at least as large .*Received: "):
        layer.compute_output_shape(MAP)
    with pytest.raises(ValueError, match=r"at least as large .*Received: |negative"):
        layer(np.ones(MAP, "float32"))


def tensor(*shape):
    return keras.ops.ones(shape)


def test_bad_attention_shapes():
    query = tensor(2, 4, 5, 8)
    for key, value in (
        (tensor(2, 4, 5, 6), query),
        (tensor(2, 2, 5, 8), query),
        (query, tensor(2, 4, 6, 8)),
        (tensor(2, 5, 8), query),
    ):
        with pytest.raises(ValueError, match=r"must .*Received: "):
            ops.attention(query, key, value)
    with pytest.raises(ValueError, match=r"`mask` must .*Received: "):
        ops.attention(query, query, query, mask=tensor(2, 4, 5, 6))
    with pytest.raises(ValueError, match=r"`implementation` must .*Received: "):
        ops.attention(query, query, query, implementation="fast")
    rows, columns = tensor(2, 4, 5, 5), tensor(2, 4, 5, 1)
    ops.attention(query, query, query, relative_logits=(rows, columns))
    for terms in ((rows,), (rows, tensor(2, 5, 1)), (rows, rows), (rows, tensor(2, 2, 5, 1))):
        with pytest.raises(ValueError, match=r"must .*Received: "):
            ops.attention(query, query, query, relative_logits=terms)


@pytest.mark.parametrize("attend", [ops.local_attention_2d, ops.block_attention_2d])
def test_bad_implementation_of_local_attention(attend):
    maps = [tensor(2, 5, 4, 2, 8)] * 3
    with pytest.raises(ValueError, match=r"`implementation` must .*Received: "):
        attend(*maps, implementation="fast")
    with pytest.raises(ValueError, match=r"must .*Received: return_scores=True"):
        attend(*maps, return_scores=True, implementation="fused")


def test_bad_multi_head_attention_shapes():
    layer = layers.MultiHeadAttention(2, 4)
    query = tensor(2, 5, 8)
    with pytest.raises(ValueError, match=r"must .*Received: "):
        layer.build((2, 5, 8), (2, 6, 8), (2, 7, 8))
    with pytest.raises(ValueError, match=r"must .*Received: "):
        layer.build((2, 8), (2, 8))
    for mask in (tensor(2, 5, 6), tensor(3, 5, 5)):
        with pytest.raises(ValueError, match=r"`attention_mask` must .*Received: "):
            layer(query, query, attention_mask=mask)
    with pytest.raises(ValueError, match=r"`query_mask` must .*Received: "):
        layer(query, query, query_mask=tensor(2, 4))


def test_bad_local_attention_shapes():
    query = tensor(1, 6, 5, 2, 4)
    with pytest.raises(ValueError, match=r"must .*Received: "):
        ops.local_attention_2d(query, query, query[:, :5])
    with pytest.raises(ValueError, match=r"`row_embeddings` must .*Received: "):
        ops.local_attention_2d(query, query, query, tensor(5, 2), tensor(3, 2), kernel_size=3)
    with pytest.raises(ValueError, match=r"must .*Received: "):
        ops.block_attention_2d(query[0], query[0], query[0])


def test_few_channels_leave_one_unit():
    layer = layers.ChannelAttention(reduction_ratio=16)
    layer.build((2, 6, 5, 3))
    assert layer.squeeze.units == 1
