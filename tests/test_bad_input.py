"""Bad input gets a ValueError that says what must hold and what was received."""

import keras
import numpy as np
import pytest
from building import answer, inputs_of, make, numpy, randomize
from cases import FIRST_CASES, IMAGE_CASES

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
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 4, "output_shape": (3, -1)}),
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 4, "attention_axes": "1"}),
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 4, "flash_attention": "auto"}),
    ("SinusoidalPositionEncoding", {"max_wavelength": "long"}),
    ("TokenEmbedding", {"input_dim": 5, "output_dim": 4, "padding_token": (0,)}),
    # What is enormous is refused before there is memory asked for.
    ("LocalSelfAttention2D", {"filters": 8 * 10**9}),
    ("LocalSelfAttention2D", {"filters": 16, "kernel_size": 10**6 + 1, "position": None}),
    ("LocalSelfAttention2D", {"filters": 16, "dilation_rate": 10**6}),
    ("LocalSelfAttention2D", {"filters": 16, "strides": 10**9}),
    ("LocalAttentionStem2D", {"filters": 8, "kernel_size": 10**6}),
    ("GatherExcite", {"extent": 10**9}),
    ("BAM", {"dilation_rate": 10**6}),
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 4, "flash_attention": True, "dropout": 0.5}),
]
IMAGE_FIRST_CASES = [case for case in FIRST_CASES if case in IMAGE_CASES]


@pytest.mark.parametrize(("name", "arguments"), BAD_ARGUMENTS, ids=str)
def test_bad_argument(name, arguments):
    with pytest.raises(ValueError, match=r"must .*Received: "):
        getattr(layers, name)(**arguments)


ENORMOUS = [  # layer, arguments, shapes: the weights would be too large
    ("ChannelAttention", {"reduction_ratio": 1}, [(1, 5, 5, 10**5)]),
    ("GatherExcite", {"parametric": True}, [(1, 10**5, 10**5, 3)]),
    ("BAM", {"reduction_ratio": 1}, [(1, 5, 5, 10**5)]),
    ("GALA", {"reduction_ratio": 1}, [(1, 5, 5, 10**5)]),
    ("AugmentedConv2D", {"filters": 2**23, "kernel_size": 255, "num_heads": 1}, [(1, 5, 5, 3)]),
    ("LocalSelfAttention2D", {"filters": 2**23}, [(1, 5, 5, 100)]),
    ("LocalAttentionStem2D", {"filters": 2**20, "num_mixtures": 2**12}, [(1, 5, 5, 3)]),
    ("RelativePositionEmbedding2D", {}, [(1, 10**9, 5, 2, 4)]),
    ("MultiHeadAttention", {"num_heads": 2**20, "key_dim": 2**12}, [(1, 5, 8)] * 2),
    ("TransformerEncoderBlock", {"num_heads": 1, "intermediate_dim": 2**24}, [(1, 5, 256)]),
    ("TokenEmbedding", {"input_dim": 2**24, "output_dim": 256}, [(1, 5)]),
]


@pytest.mark.parametrize(("name", "arguments", "shapes"), ENORMOUS, ids=str)
def test_enormous_weights_are_refused(name, arguments, shapes):
    layer = getattr(layers, name)(**arguments)
    with pytest.raises(ValueError, match=r"must leave a weight .* at most\. Received: "):
        layer.build(*shapes)


def test_strides_and_dilations_beyond_the_map_ask_for_no_memory():
    image = np.random.default_rng(0).normal(size=(1, 4, 18, 2)).astype("float32")
    layer = layers.LocalSelfAttention2D(4, 3, num_heads=2, strides=10**6)
    whole = layers.LocalSelfAttention2D(4, 3, num_heads=2)
    whole.build(image.shape)
    layer.build(image.shape)
    layer.set_weights(whole.get_weights())
    expected = numpy(whole(image)).mean((1, 2), keepdims=True)
    np.testing.assert_allclose(numpy(layer(image)), expected, atol=1e-6)
    gate = layers.GatherExcite(extent=10**6)(image)
    expected = image / (1 + np.exp(-image.mean((1, 2), keepdims=True)))
    np.testing.assert_allclose(numpy(gate), expected, atol=1e-6)
    maps = [keras.ops.convert_to_tensor(image[..., None])] * 3
    far = ops.local_attention_2d(*maps, kernel_size=5, dilation_rate=250, implementation="core")
    np.testing.assert_allclose(numpy(far)[..., 0], image, atol=1e-6)


@pytest.mark.parametrize("case", IMAGE_FIRST_CASES, ids=str)
def test_bytes_are_read_as_numbers(case):
    layer = make(case)
    layer.build(*case.shapes)
    randomize(layer)
    (image,) = inputs_of(case)
    image = np.abs(40 * image).astype("uint8")
    np.testing.assert_allclose(answer(layer, image), answer(layer, image.astype("float32")))


@pytest.mark.parametrize("axes", [0, -1, (1, 1), 10**9])
def test_attention_over_the_batch_or_the_channels_is_refused(axes):
    layer = layers.MultiHeadAttention(2, 4, attention_axes=axes)
    with pytest.raises(ValueError, match=r"`attention_axes` must .*Received: "):
        layer.build((2, 5, 8), (2, 5, 8))


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
