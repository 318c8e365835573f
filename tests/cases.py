"""A row for every public layer and setting; the promises of `test_layers.py` hold over each.

A row is the layer's name, its arguments, and the shapes of its inputs, batch included. Each
argument of each layer has a row in which it differs from its default. `alike` names arguments
that this row does not change the answer by, with the reason.
"""

from typing import NamedTuple

MAP = (2, 6, 5, 16)


class Case(NamedTuple):
    layer: str
    arguments: dict
    shapes: tuple = (MAP,)

    def __str__(self):
        settings = "-".join(
            f"{name}={value}"
            for name, value in self.arguments.items()
            if name not in {**KERNELS, **BIASES}
        )
        return f"{self.layer}-{settings}" if settings else self.layer


def _rows(layer, base, *changes, shapes=(MAP,)):
    return [Case(layer, {**base, **change}, shapes) for change in ({}, *changes)]


KERNELS = {
    "kernel_initializer": "he_normal",
    "kernel_regularizer": "l2",
    "kernel_constraint": "unit_norm",
}
BIASES = {"bias_initializer": "ones", "bias_regularizer": "l2", "bias_constraint": "unit_norm"}

CASES = [
    *_rows("ChannelAttention", {}, {"reduction_ratio": 4}, {"pooling": ("avg", "lp", "lse")}),
    *_rows("ChannelAttention", {"use_bias": False}, {**KERNELS, "use_bias": True, **BIASES}),
    Case("ChannelAttention", {"identity_start": True}),
    *_rows("SpatialAttention", {}, {"kernel_size": (3, 5)}, {"use_batch_norm": False}),
    Case("SpatialAttention", {"use_bias": True, **KERNELS, **BIASES}),
    Case("SpatialAttention", {"identity_start": True}),
    *_rows("CBAM", {}, {"order": "spatial_first"}, {"order": "parallel"}, {"channel": False}),
    *_rows("CBAM", {"spatial": False}, {"reduction_ratio": 4}, {"pooling": ("avg",)}),
    *_rows("CBAM", {"identity_start": True}, {"use_batch_norm": False}),
    Case("CBAM", {"kernel_size": 3, "use_bias": False, **KERNELS}),
    Case("CBAM", BIASES),
    *_rows("SqueezeExcite", {}, {"reduction_ratio": 4}, {"identity_start": True}),
    *_rows("SqueezeExcite", {"use_bias": False}, {"use_bias": True, **KERNELS, **BIASES}),
    *_rows("GatherExcite", {}, {"extent": 2}, {"extent": 4, "parametric": True}),
    Case("GatherExcite", {"reduction_ratio": 4, **KERNELS, **BIASES}),
    Case("GatherExcite", {"parametric": True, "identity_start": True}),
    *_rows("BAM", {"reduction_ratio": 4}, {"dilation_rate": 2}, {"identity_start": True}),
    Case("BAM", {"reduction_ratio": 2, **KERNELS, **BIASES}),
    *_rows("GALA", {}, {"reduction_ratio": 4, **KERNELS, **BIASES}, {"identity_start": True}),
    *_rows("SinusoidalPositionEncoding", {}, {"max_wavelength": 100.0}),
    Case("SinusoidalPositionEncoding", {}, ((2, 7, 6),)),
    *_rows("CoordinateChannels2D", {}, {"with_radius": True}),
    *_rows(
        "RelativePositionEmbedding2D",
        {},
        {"max_height": 3, "max_width": 9},
        {"max_height": 3, "max_width": 2, "extrapolation": "clip"},
        {"embeddings_initializer": "ones"},
        {"embeddings_regularizer": "l2", "embeddings_constraint": "unit_norm"},
        shapes=((2, 6, 5, 2, 4),),
    ),
    *_rows(
        "AugmentedConv2D",
        {"filters": 32, "kernel_size": 3, "num_heads": 2, "value_ratio": 0.25},
        {"strides": 2, "attention_pool": 2},
        {"padding": "valid", "dilation_rate": 2, "kernel_size": (3, 2)},
        {"key_ratio": 0.75, "min_key_dim": 2, "num_heads": 4},
        {"position": "sinusoidal", "use_bias": True, **KERNELS, **BIASES},
        {"position": "coordinates"},
        {"position": None},
        {"max_height": 3, "max_width": 9},
    ),
    Case(
        "AugmentedConv2D",
        {
            "filters": 64,
            "kernel_size": 1,
            "total_key_dim": 12,
            "total_value_dim": 64,
            "num_heads": 4,
        },
    ),
    *_rows(
        "LocalSelfAttention2D",
        {"filters": 16, "kernel_size": 3},
        {"kernel_size": 7, "num_heads": 4},
        {"kernel_size": (3, 5), "strides": 2},
        {"padding": "valid", "dilation_rate": (2, 1)},
        {"position": "absolute", "use_bias": True, **KERNELS, **BIASES},
        {"position": None},
    ),
    Case("LocalSelfAttention2D", {"filters": 8, "num_heads": 2}, ((1, 19, 18, 4),)),
    *_rows(
        "LocalAttentionStem2D",
        {"filters": 8},
        {"kernel_size": (2, 3), "num_heads": 2, "num_mixtures": 3, "pool_size": 2},
        {"use_bias": True, **KERNELS, **BIASES},
        shapes=((2, 9, 7, 3),),
    ),
    *_rows(
        "MultiHeadAttention",
        {"num_heads": 2, "key_dim": 4},
        {"value_dim": 3, "use_bias": False, **KERNELS},
        {"output_shape": 5, **BIASES},
        {"sliding_window": 2, "flash_attention": False},
        {"use_gate": True},
        {"dropout": 0.5, "seed": 3},
        shapes=((2, 7, 6), (2, 5, 6)),
    ),
    Case(
        "MultiHeadAttention",
        {"num_heads": 2, "key_dim": 4, "attention_axes": (2,)},
        ((2, 3, 4, 6), (2, 3, 5, 6)),
    ),
]
BLOCK = {"num_heads": 2, "intermediate_dim": 10}
CASES += [
    *_rows(
        "TransformerEncoderBlock",
        BLOCK,
        {"dropout": 0.5},
        {"activation": "gelu"},
        {"normalize_first": True, **KERNELS, **BIASES},
        shapes=((2, 7, 6),),
    ),
    *_rows(
        "TransformerDecoderBlock",
        BLOCK,
        {"dropout": 0.5},
        {"activation": "gelu"},
        {"normalize_first": True, **KERNELS, **BIASES},
        shapes=((2, 7, 6), (2, 5, 4)),
    ),
    *_rows(
        "TokenEmbedding",
        {"input_dim": 5, "output_dim": 4},
        {"padding_token": 0},
        {"embeddings_initializer": "ones", "embeddings_regularizer": "l2"},
        {"embeddings_constraint": "unit_norm"},
        shapes=((2, 7),),
    ),
]
CASES.append(
    Case(
        "MultiHeadAttention",
        {"num_heads": 2, "key_dim": 4, "position_embedding": {"max_height": 3}},
        ((2, 6, 5, 6), (2, 6, 5, 6)),
    )
)

FIRST_CASES = list({case.layer: case for case in reversed(CASES)}.values())
IMAGE_CASES = [case for case in CASES if len(case.shapes) == 1 and len(case.shapes[0]) == 4]
