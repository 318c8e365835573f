"""Small residual networks that differ in one thing, their attention.

A stem halves the image; three stages of one basic block each, the last two with stride 2, give 16,
32 and 64 channels; the mean over the map goes to the classifier. A variant changes the spatial
layers of some stages, adds a gate before the additions, or changes the stem.
"""

import dataclasses
from collections.abc import Callable

import keras

from keras_visattn.layers import (
    CBAM,
    AugmentedConv2D,
    LocalAttentionStem2D,
    LocalSelfAttention2D,
    SqueezeExcite,
)

HEADS = 4


def convolution(filters, strides):
    return keras.layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)


def strided_stem(filters):
    return convolution(filters, 2)


def attention_stem(filters):
    return LocalAttentionStem2D(filters, num_heads=HEADS, pool_size=2)


def gate(layer, **arguments):
    return lambda: layer(reduction_ratio=4, **arguments)


def augmented(ratio, position="relative"):
    """Augments the first convolution of a block, behind the first stage, as the paper does.

    The heads are as narrow as these networks: 4 channels at least, where the paper has 20.
    """

    def layer(filters, strides):
        return AugmentedConv2D(
            *(filters, 3, ratio, ratio),
            num_heads=HEADS,
            min_key_dim=4,
            strides=strides,
            position=position,
            use_bias=False,
        )

    return {"first": layer, "stages": (2, 3)}


def local(kernel_size=7, position="relative"):
    """Replaces both convolutions of a block."""

    def layer(filters, strides):
        return LocalSelfAttention2D(
            filters, kernel_size, num_heads=HEADS, strides=strides, position=position
        )

    return {"first": layer, "second": layer}


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a network has in place of convolutions, in which stages, and before its additions."""

    first: Callable = convolution
    second: Callable = convolution
    gate: Callable | None = None
    stem: Callable = strided_stem
    stages: tuple = (1, 2, 3)


VARIANTS = {
    "convolution": Variant(),
    "squeeze-excite": Variant(gate=gate(SqueezeExcite)),
    "CBAM": Variant(gate=gate(CBAM, kernel_size=3)),
    "CBAM, channel only": Variant(gate=gate(CBAM, spatial=False)),
    "CBAM, spatial only": Variant(gate=gate(CBAM, kernel_size=3, channel=False)),
    "CBAM, spatial first": Variant(gate=gate(CBAM, kernel_size=3, order="spatial_first")),
    "CBAM, identity start": Variant(gate=gate(CBAM, kernel_size=3, identity_start=True)),
    "CBAM, parallel": Variant(gate=gate(CBAM, kernel_size=3, order="parallel")),
    **{f"augmented, ratio {ratio}": Variant(**augmented(ratio)) for ratio in (0.25, 0.5, 0.75, 1)},
    "augmented, no position": Variant(**augmented(0.25, None)),
    "augmented, sinusoids": Variant(**augmented(0.25, "sinusoidal")),
    "augmented, coordinates": Variant(**augmented(0.25, "coordinates")),
    **{f"local, k = {k}": Variant(**local(k)) for k in (3, 5, 7, 9, 11)},
    "local, no position": Variant(**local(position=None)),
    "local, sinusoids": Variant(**local(position="absolute")),
    **{f"local, stage {n}": Variant(**local(), stages=(n,)) for n in (1, 2, 3)},
    "attention stem": Variant(stem=attention_stem),
    "attention stem, local": Variant(**local(), stem=attention_stem),
}


LONG = {  # left out of the short form
    "CBAM, identity start",
    "local, k = 5",
    "local, k = 9",
    "attention stem, local",
}

# A question, the variant that the others are set against, and the others.
QUESTIONS = {
    "Does a gate help?": ("convolution", ["squeeze-excite", "CBAM"]),
    "Which half of CBAM, in which order, from which start?": (
        "CBAM",
        [name for name in VARIANTS if name.startswith("CBAM,")],
    ),
    "Does global attention beside the convolution help, and how much of it?": (
        "convolution",
        [name for name in VARIANTS if name.startswith("augmented, ratio")],
    ),
    "Which positions for global attention?": (
        "augmented, ratio 0.25",
        ["augmented, no position", "augmented, sinusoids", "augmented, coordinates"],
    ),
    "Can local attention replace the convolution?": (
        "convolution",
        [name for name in VARIANTS if name.startswith("local, k")],
    ),
    "Which positions for local attention?": (
        "local, k = 7",
        ["local, no position", "local, sinusoids"],
    ),
    "Early or late?": ("convolution", [f"local, stage {n}" for n in (1, 2, 3)]),
    "Which stem?": ("convolution", ["attention stem", "attention stem, local"]),
}


def network(variant, input_shape, classes, width=16):
    """Makes the network of a variant; it gives logits."""
    plain = Variant()
    images = keras.Input(input_shape)
    x = _rectified(variant.stem(width)(images))
    for stage in (1, 2, 3):
        here = variant if stage in variant.stages else plain
        filters, strides = width * 2 ** (stage - 1), 1 if stage == 1 else 2
        y = _rectified(here.first(filters, strides)(x))
        y = keras.layers.BatchNormalization(momentum=0.9)(here.second(filters, 1)(y))
        if here.gate is not None:
            y = here.gate()(y)
        if strides > 1:
            x = keras.layers.Conv2D(filters, 1, strides, use_bias=False)(x)
            x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU(name=f"stage{stage}")(keras.layers.Add()([x, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(classes)(x))


def _rectified(x):
    return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
