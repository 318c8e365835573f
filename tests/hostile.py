"""Strategies of hypothesis for every public layer: its arguments, some of them bad, and its inputs.

Sizes are from small sets: the loops of the oracle are slow, and JAX compiles each shape anew.
"""

from typing import NamedTuple

import numpy as np
from building import PUBLIC_LAYERS, signature_of
from hypothesis import strategies as st

NOT_ALLOWED = [0, -3, 1.5, 10**9, float("nan"), float("inf"), "three", (), (3, 0), (1, 2, 3), {}]
DTYPES = ["float32"] * 5 + ["float64", "uint8", "int32", "bool"]
WEIGHTS = {  # arguments that Keras checks, and those whose truth alone counts
    "kernel_initializer",
    "bias_initializer",
    "kernel_regularizer",
    "bias_regularizer",
    "kernel_constraint",
    "bias_constraint",
    "embeddings_initializer",
    "embeddings_regularizer",
    "embeddings_constraint",
    "activation",
    "seed",
    "position_embedding",
}

some = st.sampled_from
flag = st.booleans()
odd = some([1, 3, 5, (3, 5), (5, 1), 9])
rate = some([1, 2, (2, 1), 4])
ratio = some([1, 2, 4, 16, 1000])
stride = some([1, 2, 3, 50])
padding = some(["same", "valid"])
length = some([None, 1, 2, 5, 9])
heads = some([1, 2, 4])
poolings = some(["avg", ("max",), ["avg", "lse"], ("max", "lp", "avg")])

GATE = {"identity_start": flag}
BLOCK = {
    "num_heads": heads,
    "intermediate_dim": some([1, 10]),
    "dropout": some([0.0, 0.5, 1]),
    "normalize_first": flag,
}
NEEDED = {  # what has no default, or one that small maps do not bear
    "AugmentedConv2D": {
        "filters": some([8, 12]),
        "kernel_size": some([1, 3, (3, 2), 4, 7]),
        "num_heads": heads,
        "min_key_dim": some([1, 2]),
        "total_value_dim": some([4, 8, 2, None]),
    },
    "LocalSelfAttention2D": {"filters": some([4, 8, 12]), "num_heads": heads},
    "LocalAttentionStem2D": {"filters": some([4, 8]), "num_heads": heads},
    # Keras takes a bias of heads of one channel for one of channels on TensorFlow.
    "MultiHeadAttention": {"num_heads": heads, "key_dim": some([2, 3])},
    "TransformerEncoderBlock": BLOCK,
    "TransformerDecoderBlock": BLOCK,
    "TokenEmbedding": {"input_dim": some([1, 5]), "output_dim": some([1, 4])},
}
OPTIONAL = {
    "ChannelAttention": GATE | {"reduction_ratio": ratio, "pooling": poolings, "use_bias": flag},
    "SpatialAttention": GATE | {"kernel_size": odd, "use_bias": flag, "use_batch_norm": flag},
    "CBAM": GATE
    | {
        "reduction_ratio": ratio,
        "kernel_size": odd,
        "pooling": poolings,
        "order": some(["channel_first", "spatial_first", "parallel"]),
        "channel": flag,
        "spatial": flag,
        "use_bias": flag,
        "use_batch_norm": flag,
    },
    "SqueezeExcite": GATE | {"reduction_ratio": ratio, "use_bias": flag},
    "GatherExcite": GATE
    | {
        "extent": some([1, 2, 3, 4, 50]),
        "parametric": flag,
        "reduction_ratio": some([None, 2, 16]),
    },
    "BAM": GATE | {"reduction_ratio": ratio, "dilation_rate": rate},
    "GALA": GATE | {"reduction_ratio": ratio},
    "SinusoidalPositionEncoding": {"max_wavelength": some([1, 100.0, 1e4])},
    "CoordinateChannels2D": {"with_radius": flag},
    "RelativePositionEmbedding2D": {
        "max_height": length,
        "max_width": length,
        "extrapolation": some(["interpolate", "clip"]),
    },
    "AugmentedConv2D": {
        "key_ratio": some([0, 0.2, 1, 1.0]),
        "value_ratio": some([0.5, 1, 0.25]),
        "total_key_dim": some([None, 4, 8]),
        "strides": stride,
        "dilation_rate": rate,
        "padding": padding,
        "position": some(["relative", "sinusoidal", "coordinates", None]),
        "attention_pool": stride,
        "max_height": length,
        "max_width": length,
        "use_bias": flag,
    },
    "LocalSelfAttention2D": {
        "kernel_size": odd,
        "strides": stride,
        "dilation_rate": rate,
        "padding": padding,
        "position": some(["relative", "absolute", None]),
        "use_bias": flag,
    },
    "LocalAttentionStem2D": {
        "kernel_size": some([1, 2, 4, (2, 3), 9]),
        "num_mixtures": some([1, 3]),
        "pool_size": some([1, 2, 4, 50]),
        "use_bias": flag,
    },
    "MultiHeadAttention": {
        "value_dim": some([None, 2, 4]),
        "dropout": some([0.0, 0.5, 1]),
        "use_bias": flag,
        "output_shape": some([None, 1, 5, (3,)]),
        "attention_axes": some([None, 1, (-2,)]),
        "sliding_window": some([None, 1, 2, 50]),
        "flash_attention": some([None, False]),
        "use_gate": flag,
    },
    "TokenEmbedding": {"padding_token": some([None, 0])},
}
NOT_TOGETHER = {  # what is refused too often to learn anything else
    "AugmentedConv2D": [
        ("total_key_dim", "key_ratio"),
        ("total_value_dim", "value_ratio"),
        ("strides", "dilation_rate"),
        ("dilation_rate", "padding"),
    ],
    "LocalSelfAttention2D": [("dilation_rate", "padding")],
}
SIZES = some([1, 2, 5, 7, 18])  # 18: more than one tile


class Example(NamedTuple):
    """A layer's arguments, which of them is perhaps not allowed, and its inputs."""

    arguments: dict
    bad: str | None
    allowed: object  # what the bad argument was before
    inputs: list


@st.composite
def examples(draw, name):
    """Draws arguments that are allowed one by one, makes one of them bad, and draws inputs."""
    needed = st.fixed_dictionaries(NEEDED.get(name, {}), optional=OPTIONAL.get(name, {}))
    arguments, bad, allowed = dict(draw(needed)), None, None
    if draw(some([True] * 4 + [False])):
        for one, other in NOT_TOGETHER.get(name, ()):
            if arguments.get(one) is not None:
                arguments.pop(other, None)
    checked = [x for x in [*NEEDED.get(name, {}), *OPTIONAL.get(name, {})] if not truth(x)]
    if checked and draw(some([False] * 2 + [True])):
        bad = draw(some(sorted(checked)))
        allowed, arguments[bad] = arguments.get(bad), draw(some(NOT_ALLOWED))
    if "data_format" in signature_of(PUBLIC_LAYERS[name]):
        arguments["data_format"] = draw(some(["channels_last"] * 3 + ["channels_first"]))
    shapes = draw(shapes_of(name))
    dtype = "int32" if name == "TokenEmbedding" else draw(some(DTYPES))
    values = np.random.default_rng(draw(st.integers(0, 9)))
    most = arguments.get("input_dim") if name == "TokenEmbedding" else None
    return Example(
        arguments, bad, allowed, [_array(values, shape, dtype, most) for shape in shapes]
    )


def truth(name):
    """Whether of an argument only the truth counts, as with Keras' own layers."""
    words = ("use_", "with_", "identity_", "normalize_first", "parametric", "channel", "spatial")
    return name in WEIGHTS or name.startswith(words)


@st.composite
def shapes_of(draw, name):
    """Draws the shapes of a layer's inputs, maps with the channels last."""
    batch = draw(some([0, 1, 2, 2]))
    channels = draw(some([1, 3, 4]))
    if name == "TokenEmbedding":
        return [(batch, draw(SIZES))]
    if name == "TransformerEncoderBlock":
        return [(batch, draw(SIZES), 4)]
    if name == "TransformerDecoderBlock":
        return [(batch, draw(SIZES), 4), (batch, draw(SIZES), channels)]
    if name == "MultiHeadAttention":
        return [(batch, draw(SIZES), channels), (batch, draw(SIZES), draw(some([1, 3])))]
    size = draw(SIZES), draw(SIZES)
    if name == "SinusoidalPositionEncoding" and draw(flag):
        return [(batch, size[0], channels)]
    if name == "RelativePositionEmbedding2D":
        return [(batch, min(size[0], 7), min(size[1], 7), draw(heads), channels)]
    return [(batch, *size, channels)]


def _array(values, shape, dtype, most):
    if most is not None:
        return values.integers(most if isinstance(most, int) and most > 0 else 1, size=shape)
    x = values.normal(size=shape)
    return (np.abs(3 * x) if dtype in ("uint8", "int32") else x).astype(dtype)
