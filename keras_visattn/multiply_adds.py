"""The rules by which multiply-adds are counted: one for each class of layer.

A rule is a function of the layer, the shapes of its inputs and the shapes of its outputs. A layer
without a rule is free if it stands in `FREE_LAYERS`, or if it comes from Keras, has no weights and
is not named in `PRODUCTS`. All others are not counted.
"""

import math
from collections.abc import Callable

import keras

from keras_visattn import layers
from keras_visattn.models.retinanet import TopDown

PRODUCTS = (
    *("AdditiveAttention", "Attention", "Conv", "ConvTranspose", "DepthwiseConv", "Dot", "Inner"),
    *("DotProductAttention", "Einsum", "Lambda", "Matmul", "SeparableConv", "Tensordot", "Vdot"),
)
FREE_LAYERS = (
    *(keras.layers.BatchNormalization, keras.layers.GroupNormalization),
    *(keras.layers.LayerNormalization, keras.layers.Embedding, keras.layers.PReLU),
    *(layers.CoordinateChannels2D, layers.SinusoidalPositionEncoding, TopDown),
)


def count(layer, inputs, outputs):
    """Counts the multiply-adds of one call of a layer; None if nobody has said how.

    Args:
        layer: Keras layer or operation, built.
        inputs: List of the shapes of its inputs, all sizes known.
        outputs: List of the shapes of its outputs.
    """
    rule = RULES.get(type(layer))
    if rule is not None:
        return rule(layer, inputs, outputs)
    if type(layer) in FREE_LAYERS:
        return 0
    # What is left of Keras has no products if it has no weights, but for a few by name.
    plain = type(layer).__module__.startswith("keras.") and not getattr(layer, "weights", ())
    return 0 if plain and type(layer).__name__ not in PRODUCTS else None


def _applied(positions, *holders):
    """Counts kernels that are applied at a number of positions."""
    return positions * sum(math.prod(holder.kernel.shape) for holder in holders)


def _pixels(layer, shapes):
    return math.prod(layer.image_shape(shapes[0])[1:3])


def _gather_excite(layer, inputs, outputs):
    sizes, macs = layer.image_shape(inputs[0])[1:3], 0
    for gather in layer.gathers:
        sizes = [-(-n // 2) if layer.extent else 1 for n in sizes]
        macs += _applied(math.prod(sizes), gather)
    if not layer.gathers:
        sizes = [-(-n // layer.extent) if layer.extent else 1 for n in sizes]
    if layer.squeeze is not None:
        macs += _applied(math.prod(sizes), layer.squeeze, layer.excite)
    return macs


def _augmented_conv2d(layer, inputs, outputs):
    height, width = layer.image_shape(outputs[0])[1:3]
    macs = 0 if layer.convolution is None else _applied(height * width, layer.convolution)
    height, width = (-(-n // layer.attention_pool) for n in (height, width))
    pixels = height * width
    macs += _applied(pixels, layer.projection, layer.combination)
    macs += pixels**2 * layer.num_heads * (layer.key_dim + layer.value_dim)
    if layer.position_embedding is not None:
        macs += pixels * (height + width) * layer.num_heads * layer.key_dim
    return macs


def _local_self_attention2d(layer, inputs, outputs):
    _, height, width, _, places = layer.compute_scores_shape(inputs[0])
    products = 3 if layer.position == "relative" else 2
    macs = products * height * width * places * layer.filters
    return macs + _applied(_pixels(layer, inputs), layer.projection)


def _local_attention_stem2d(layer, inputs, outputs):
    pixels, size = _pixels(layer, inputs), layer.filters // layer.num_heads
    lengths = zip(layer.image_shape(inputs[0])[1:3], layer.kernel_size, strict=True)
    pairs = math.prod(n // block * block**2 + (n % block) ** 2 for n, block in lengths)
    mixing = layer.num_mixtures * (pixels * layer.filters + math.prod(layer.kernel_size) * size)
    return _applied(pixels, layer.projection) + mixing + 2 * pairs * layer.filters


def _multi_head_attention(layer, inputs, outputs):
    query, value = inputs[:2]
    queries, key_positions = math.prod(query[:-1]), math.prod(value[:-1])
    axes = layer.attention_axes or range(1, len(query) - 1)
    scores = queries * math.prod(value[axis] for axis in axes) * layer.num_heads
    macs = _applied(queries, layer.query_dense, layer.output_dense)
    macs += _applied(key_positions, layer.key_dense, layer.value_dense)
    macs += scores * (layer.key_dim + layer.value_dim)
    if layer.gate_dense is not None:
        macs += _applied(queries, layer.gate_dense)
    if layer.position_embedding is not None:
        macs += queries * (value[1] + value[2]) * layer.num_heads * layer.key_dim
    return macs


def _encoder_block(layer, inputs, outputs):
    x = inputs[0]
    macs = _multi_head_attention(layer.attention, [x, x], [x])
    return macs + _applied(math.prod(x[:-1]), layer.expand, layer.shrink)


def _decoder_block(layer, inputs, outputs):
    x, memory = inputs[:2]
    macs = _multi_head_attention(layer.self_attention, [x, x], [x])
    macs += _multi_head_attention(layer.cross_attention, [x, memory], [x])
    return macs + _applied(math.prod(x[:-1]), layer.expand, layer.shrink)


def _token_embedding(layer, inputs, outputs):
    reverse = len(inputs[0]) == len(outputs[0])
    return math.prod(outputs[0]) * layer.output_dim if reverse else 0


def _matrix(layer, inputs, outputs):
    return math.prod(outputs[0]) * math.prod(layer.kernel.shape[:-1])


RULES: dict[type, Callable[..., int]] = {
    **dict.fromkeys((keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D), _matrix),
    keras.layers.Dense: _matrix,
    keras.layers.DepthwiseConv2D: lambda layer, _, outputs: (
        math.prod(outputs[0]) * math.prod(layer.kernel.shape[:-2])
    ),
    layers.AugmentedConv2D: _augmented_conv2d,
    layers.BAM: lambda layer, inputs, _: (
        _applied(1, layer.squeeze, layer.excite)
        + _applied(_pixels(layer, inputs), *layer.convolutions)
    ),
    layers.CBAM: lambda layer, *shapes: sum(
        RULES[type(gate)](gate, *shapes) for gate in layer.gates.values()
    ),
    layers.ChannelAttention: lambda layer, *_: _applied(
        len(layer.pooling), layer.squeeze, layer.excite
    ),
    layers.GALA: lambda layer, inputs, _: (
        _applied(1, layer.squeeze, layer.excite)
        + _applied(_pixels(layer, inputs), layer.shrink, layer.collapse)
    ),
    layers.GatherExcite: _gather_excite,
    layers.LocalAttentionStem2D: _local_attention_stem2d,
    layers.LocalSelfAttention2D: _local_self_attention2d,
    layers.MultiHeadAttention: _multi_head_attention,
    layers.SpatialAttention: lambda layer, inputs, _: _applied(
        _pixels(layer, inputs), layer.convolution
    ),
    layers.SqueezeExcite: lambda layer, *_: _applied(
        1, layer.channel_attention.squeeze, layer.channel_attention.excite
    ),
    layers.TokenEmbedding: _token_embedding,
    layers.TransformerDecoderBlock: _decoder_block,
    layers.TransformerEncoderBlock: _encoder_block,
}
