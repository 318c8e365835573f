"""What the convolutional networks are stacked from, and where their attention goes."""

import dataclasses
import re

import keras

from keras_visattn import layers
from keras_visattn.ops import checks

BLOCK_GATES = {
    "se": layers.SqueezeExcite,
    "ge": layers.GatherExcite,
    "cbam": layers.CBAM,
    "gala": layers.GALA,
}
STAGE_GATES = {"bam": layers.BAM}
MIXERS = {"augmented": layers.AugmentedConv2D, "local": layers.LocalSelfAttention2D}
KINDS = (None, *BLOCK_GATES, *STAGE_GATES, *MIXERS)


@dataclasses.dataclass(frozen=True)
class Attention:
    """Puts one kind of attention into some stages of a network.

    Args:
        kind: One of `KINDS`.
        stages: Integer or tuple of integers, the stages that have it, from 1 on.
        arguments: Dictionary, arguments of the attention layer.
        scales: Tuple of integers, side of a pixel of each stage's output in pixels of the image.
        image_size: Integer, side of the images that the paper trains on. Relative positions get
            tables for it where the network's own size is unknown.
        largest_map: Integer, side of the largest map that global attention sees at that size;
            where a stage's is larger, it pools.
    """

    kind: str | None
    stages: int | tuple
    arguments: dict
    scales: tuple
    image_size: int
    largest_map: int

    def __post_init__(self):
        checks.choice("attention", self.kind, KINDS)
        if self.kind is None and self.arguments:
            raise ValueError(
                "`attention` must be given with the arguments of an attention layer. "
                f"Received: attention=None, {self.arguments}"
            )
        stages = checks.integers("attention_stages", self.stages)
        if not set(stages) <= set(range(1, len(self.scales) + 1)):
            raise ValueError(
                f"`attention_stages` must be from 1 to {len(self.scales)}. "
                f"Received: attention_stages={self.stages}"
            )
        object.__setattr__(self, "stages", stages)

    def block_gate(self, x, stage, name):
        """Gates the end of a residual branch."""
        return self._gate(BLOCK_GATES, x, stage, name)

    def stage_gate(self, x, stage, name):
        """Gates the end of a stage."""
        return self._gate(STAGE_GATES, x, stage, name)

    def _gate(self, gates, x, stage, name):
        if self.kind not in gates or stage not in self.stages:
            return x
        return gates[self.kind](**self.arguments, name=f"{name}_{self.kind}")(x)

    def convolution(self, x, filters, kernel_size, strides, stage, name, groups=1, kinds=MIXERS):
        """Convolves, or attends instead where the stage has attention of one of the kinds."""
        if self.kind not in kinds or stage not in self.stages:
            return convolution(x, filters, kernel_size, strides, groups, f"{name}_conv")
        arguments = {"strides": strides, "name": f"{name}_{self.kind}"}
        if self.kind == "augmented":
            padded = pad(x, kernel_size, strides, name)
            arguments |= self._global_attention(x, stage) | {
                "kernel_size": kernel_size,
                "padding": "same" if padded is x else "valid",
            }
            x = padded
        return MIXERS[self.kind](filters, **arguments | self.arguments)(x)

    def _global_attention(self, x, stage):
        """Says how a stage's map is pooled for global attention, and how large the tables are."""
        side = -(-self.image_size // self.scales[stage - 1])
        pool = self.arguments.get("attention_pool", -(-side // self.largest_map))
        arguments = {"attention_pool": pool}
        for axis, length in zip(("height", "width"), image_size_of(x), strict=True):
            if length is None:
                arguments[f"max_{axis}"] = -(-side // pool)
        return arguments


def channel_axis():
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def image_size_of(x):
    """Gives the height and the width of a symbolic batch of images, None where unknown."""
    return x.shape[1:3] if channel_axis() == -1 else x.shape[2:4]


def pad(x, kernel_size, strides, name):
    """Pads all sides alike before a strided window; Keras' "same" favours two of them."""
    if strides == 1 or kernel_size == 1:
        return x
    return keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)


def convolution(x, filters, kernel_size, strides=1, groups=1, name=None):
    """Convolves without a bias, padded alike on all sides; He's initialization by fan-out."""
    padded = pad(x, kernel_size, strides, name)
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same" if padded is x else "valid",
        groups=groups,
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        name=name,
    )(padded)


def depthwise(x, kernel_size, strides, name):
    """Convolves each channel by itself, without a bias, padded alike on all sides."""
    padded = pad(x, kernel_size, strides, name)
    return keras.layers.DepthwiseConv2D(
        kernel_size,
        strides=strides,
        padding="same" if padded is x else "valid",
        use_bias=False,
        depthwise_initializer="he_normal",
        name=name,
    )(padded)


def normalize(x, name, activation="relu"):
    """Normalizes over the batch, with PyTorch's momentum and epsilon; an activation follows."""
    x = keras.layers.BatchNormalization(
        axis=channel_axis(), momentum=0.9, epsilon=1e-5, name=f"{name}_bn"
    )(x)
    return keras.layers.Activation(activation, name=f"{name}_{activation}")(x) if activation else x


def level(x, scale):
    """Names a stage's output for `pyramid`: its level is the logarithm of its scale."""
    return keras.layers.Identity(name=f"P{scale.bit_length() - 1}")(x)


def classify(x, classes, activation, dropout=0.0):
    """Averages over the pixels and classifies."""
    checks.positive_integer("classes", classes)
    x = keras.layers.GlobalAveragePooling2D(name="average_pool")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.layers.Dense(classes, activation=activation, name="predictions")(x)


def image_input(input_shape):
    """Makes the input of a network after checking its shape."""
    shape = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else (input_shape,)
    if len(shape) != 3 or (None, *shape)[channel_axis()] is None:
        raise ValueError(
            "`input_shape` must be the height, the width and the channels of an image, in the "
            "order of `keras.config.image_data_format()`, and the channels must be known. "
            f"Received: input_shape={input_shape}"
        )
    return keras.Input(shape)


def pyramid(model: keras.Model) -> keras.Model:
    """Gives a model of the maps of a network's stages, from fine to coarse.

    Args:
        model: `keras.Model` of this package, or any functional model with layers named `"P2"`,
            `"P3"` and so on; a reloaded one too. `include_top` makes no difference.

    Returns:
        A `keras.Model` with the same layers, weights and input. Its output is a dictionary of
        maps by name; the side of a pixel of `"P3"` is `2**3` pixels of the image.

    Raises:
        ValueError: If no layer has such a name.

    Examples:
        >>> model = keras_visattn.models.ResNet(18, filters=16)
        >>> list(keras_visattn.models.pyramid(model).output)
        ['P2', 'P3', 'P4', 'P5']
    """
    levels = {layer.name: layer for layer in model.layers if re.fullmatch(r"P\d", layer.name)}
    if not levels:
        raise ValueError(
            '`model` must have layers named "P2", "P3" and so on. '
            f"Received: model={model.name}, with layers {[layer.name for layer in model.layers]}"
        )
    outputs = {name: layer.output for name, layer in levels.items()}
    return keras.Model(model.input, outputs, name=f"{model.name}_pyramid")
