"""RetinaNet: a pyramid of maps and two heads on any backbone (Lin et al., 2017)."""

import math
from typing import Any, Literal

import keras
from keras import ops

from keras_visattn import layers
from keras_visattn.layers.image_layer import ImageLayer
from keras_visattn.models import blocks
from keras_visattn.ops import checks

PRIOR_PROBABILITY = 0.01
TOWER_LAYERS = 4


def RetinaNet(
    backbone: keras.Model,
    classes: int,
    num_anchors: int = 9,
    attention: Literal["local"] | None = None,
    filters: int = 256,
    name: str | None = None,
    **attention_arguments: Any,
) -> keras.Model:
    """Makes a detector of objects: for each anchor, the logits of the classes and four offsets.

    The backbone's maps P3, P4 and P5 go through a feature pyramid: 1x1 convolutions, each coarser
    map upsampled onto the finer, then 3x3 convolutions; two strided ones make P6 from P5 and P7
    from P6. Two heads of four convolutions and a last one read every level with the same weights.
    With `attention="local"`, all 3x3 convolutions but the last of each head are
    `LocalSelfAttention2D`; those that stride have its pool.

    Args:
        backbone: `keras.Model` with layers named `"P3"`, `"P4"` and `"P5"`, such as
            `models.ResNet` and `models.MnasNet` make. Its layers are shared, not copied;
            `include_top` makes no difference.
        classes: Integer, number of classes.
        num_anchors: Integer, anchors of a pixel: 9 for those of `ops.anchor_boxes`.
        attention: `None` or `"local"`, what the pyramid and the heads are made of. The backbone
            has its own.
        filters: Integer, channels of the pyramid and the heads.
        name: String, name of the model.
        **attention_arguments: Arguments of `LocalSelfAttention2D` over its defaults, which are
            the paper's: `kernel_size=7`, `num_heads=8`.

    Returns:
        A functional `keras.Model` with the input of the backbone. Its output is a dictionary of
        `"boxes"`, `(batch, A, 4)`, and `"classes"`, `(batch, A, classes)`, float32, with the
        anchors in the order of `ops.anchor_boxes`.

    Raises:
        ValueError: If the backbone has no such layers, an argument is none of these, or
            `LocalSelfAttention2D` refuses its arguments.

    Reference:
        Lin et al., 2017, "Focal Loss for Dense Object Detection", section 4
        (https://arxiv.org/abs/1708.02002); Ramachandran et al., 2019, section 4.2
        (https://arxiv.org/abs/1906.05909).

    Examples:
        >>> backbone = keras_visattn.models.ResNet(18, filters=16)
        >>> model = keras_visattn.models.RetinaNet(backbone, 20, filters=32)
        >>> outputs = model(keras.ops.zeros((1, 97, 131, 3)))
        >>> anchors = keras_visattn.ops.anchor_boxes((97, 131))
        >>> tuple(outputs["classes"].shape) == (1, anchors.shape[0], 20)
        True
    """
    checks.positive_integer("classes", classes)
    checks.positive_integer("num_anchors", num_anchors)
    checks.choice("attention", attention, (None, "local"))
    checks.positive_integer("filters", filters)
    if attention is None and attention_arguments:
        raise ValueError(
            "`attention` must be given with the arguments of an attention layer. "
            f"Received: attention=None, {attention_arguments}"
        )
    maps = blocks.pyramid(backbone).output
    if not {"P3", "P4", "P5"} <= set(maps):
        raise ValueError(
            '`backbone` must have layers named "P3", "P4" and "P5". '
            f"Received: backbone={backbone.name}, with {sorted(maps)}"
        )
    stack = _Stack(filters, attention, attention_arguments)
    levels = _feature_pyramid(maps, stack)
    last_bias = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
    outputs = {
        "boxes": _head(levels, stack, "boxes", num_anchors, 4, "zeros"),
        "classes": _head(
            *(levels, stack, "classes", num_anchors, classes),
            keras.initializers.Constant(last_bias),
        ),
    }
    return keras.Model(backbone.input, outputs, name=name or "retinanet")


class _Stack:
    """Makes the 3x3 convolutions, or what takes their place."""

    def __init__(self, filters, attention, arguments):
        self.filters = filters
        self.attention = attention
        self.arguments = arguments

    def layer(self, name, **arguments):
        """Makes a layer for maps whose size stays."""
        if self.attention == "local":
            return layers.LocalSelfAttention2D(
                **{"filters": self.filters, "name": name} | self.arguments
            )
        return keras.layers.Conv2D(self.filters, 3, padding="same", name=name, **arguments)

    def halve(self, x, name):
        """Makes a map of half the size, rounded up."""
        if self.attention == "local":
            return layers.LocalSelfAttention2D(
                **{"filters": self.filters, "strides": 2, "name": name} | self.arguments
            )(x)
        x = blocks.pad(x, 3, 2, name)
        return keras.layers.Conv2D(self.filters, 3, strides=2, name=name)(x)


def _feature_pyramid(maps, stack):
    """Gives P3 to P7."""
    merged = None
    levels = {}
    for number in (5, 4, 3):
        name = f"pyramid_P{number}"
        x = keras.layers.Conv2D(stack.filters, 1, name=f"{name}_lateral")(maps[f"P{number}"])
        merged = x if merged is None else TopDown(name=f"{name}_merge")([x, merged])
        levels[number] = stack.layer(name)(merged)
    levels[6] = stack.halve(levels[5], "pyramid_P6")
    x = keras.layers.Activation("relu", name="pyramid_P6_relu")(levels[6])
    levels[7] = stack.halve(x, "pyramid_P7")
    return [levels[number] for number in (3, 4, 5, 6, 7)]


def _head(levels, stack, name, num_anchors, size, last_bias):
    """Gives `(batch, all anchors, size)` from all levels, with the same layers."""
    narrow = keras.initializers.RandomNormal(stddev=0.01)
    tower = []
    for index in range(1, TOWER_LAYERS + 1):
        tower.append(stack.layer(f"{name}_{index}", kernel_initializer=narrow.clone()))
        tower.append(keras.layers.Activation("relu", name=f"{name}_{index}_relu"))
    tower.append(
        keras.layers.Conv2D(
            num_anchors * size,
            3,
            padding="same",
            kernel_initializer=narrow,
            bias_initializer=last_bias,
            name=f"{name}_last",
        )
    )
    if blocks.channel_axis() == 1:
        tower.append(keras.layers.Permute((2, 3, 1), name=f"{name}_channels_last"))
    for layer in tower:
        levels = [layer(x) for x in levels]
    # Not one for all: in Keras 3.8 it keeps the shape of the first map.
    levels = [
        keras.layers.Reshape((-1, size), name=f"{name}_P{number}_flat")(x)
        for number, x in enumerate(levels, 3)
    ]
    return keras.layers.Concatenate(axis=1, dtype="float32", name=name)(levels)


@keras.saving.register_keras_serializable(package="keras_visattn")
class TopDown(ImageLayer):
    """Adds a map to a finer one, each pixel repeated twice by twice and cut to the finer size.

    The finer map has an odd size where the coarser is not exactly half of it.

    Args:
        **kwargs: Those of `ImageLayer`.

    Call arguments:
        inputs: List of the finer and the coarser map, of equal channels.
    """

    def call(self, inputs):
        finer, coarser = inputs
        cut = [slice(None)] * 4
        for axis in self.spatial_axes:
            coarser = ops.repeat(coarser, 2, axis=axis)
            cut[axis] = slice(ops.shape(finer)[axis])
        return finer + coarser[tuple(cut)]

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[0])
