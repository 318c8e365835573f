"""MnasNet-A1, plain and with attention (Tan et al., 2018)."""

from typing import Any, Literal, NamedTuple

import keras

from keras_visattn import layers
from keras_visattn.models import blocks
from keras_visattn.ops import checks
from keras_visattn.typing import Activation, Shape


class Stage(NamedTuple):
    """A row of the paper's figure 7: inverted bottlenecks, the first of them strided."""

    filters: int
    repeats: int
    kernel_size: int
    expansion: int
    strides: int
    squeeze: bool


STAGES = (
    Stage(16, 1, 3, 1, 1, False),
    Stage(24, 2, 3, 6, 2, False),
    Stage(40, 3, 5, 3, 2, True),
    Stage(80, 4, 3, 6, 2, False),
    Stage(112, 2, 3, 6, 1, True),
    Stage(160, 3, 5, 6, 2, True),
    Stage(320, 1, 3, 6, 1, False),
)
SCALES = (2, 4, 8, 16, 16, 32, 32)
KINDS = (None, *blocks.BLOCK_GATES, "augmented")


def MnasNet(
    width: float = 1.0,
    attention: Literal["se", "ge", "cbam", "gala", "augmented"] | None = None,
    attention_stages: int | tuple[int, ...] | None = None,
    input_shape: Shape = (None, None, 3),
    classes: int = 1000,
    include_top: bool = True,
    classifier_activation: Activation | None = "softmax",
    dropout: float = 0.2,
    name: str | None = None,
    **attention_arguments: Any,
) -> keras.Model:
    """Makes MnasNet-A1, a network for phones, with one kind of attention or with none.

    `"augmented"` augments the 1x1 convolutions that expand the channels of the inverted
    bottlenecks, in the last three stages, with four heads and `key_ratio=value_ratio=0.1`. The
    other kinds gate the end of each bottleneck. The squeeze-and-excitation gates of A1 itself, in
    stages 3, 5 and 6, are always there.

    Args:
        width: Float, multiplier of all channels but the last 1280; they are rounded to a multiple
            of 8, and at most a tenth of them is lost.
        attention: `None`, `"se"`, `"ge"`, `"cbam"`, `"gala"` or `"augmented"`.
        attention_stages: Integer or tuple of integers from 1 to 7, the stages that get it.
            Defaults to the last three if `"augmented"`, else to all.
        input_shape: Tuple, height, width and channels of the images; height and width may be
            `None`. Relative tables are then made for images of 224.
        classes: Integer, number of classes.
        include_top: Boolean. If `False`, the output is the last map, of 1280 channels; see
            `pyramid` for the maps of all levels.
        classifier_activation: Activation of the classifier; `None` gives logits.
        dropout: Float in [0, 1], share of the values dropped before the classifier.
        name: String, name of the model.
        **attention_arguments: Arguments of the attention layer over its defaults.

    Returns:
        A functional `keras.Model`. The maps before each stride are named `P1` to `P4`, the last
        one `P5`.

    Raises:
        ValueError: If an argument is none of these, or an attention layer refuses its arguments.

    Reference:
        Tan et al., 2018, "MnasNet: Platform-Aware Neural Architecture Search for Mobile"
        (https://arxiv.org/abs/1807.11626); Bello et al., 2019, section 4.3
        (https://arxiv.org/abs/1904.09925).

    Examples:
        >>> model = keras_visattn.models.MnasNet(0.35, classes=10)
        >>> keras.ops.shape(model(keras.random.normal((2, 32, 40, 3))))
        (2, 10)
    """
    checks.choice("attention", attention, KINDS)
    checks.fraction("dropout", dropout)
    if not width > 0:
        raise ValueError(f"`width` must be positive. Received: width={width}")
    if attention_stages is None:
        attention_stages = (5, 6, 7) if attention == "augmented" else tuple(range(1, 8))
    if attention == "augmented":
        ratios = {"key_ratio": 0.1} if "total_key_dim" not in attention_arguments else {}
        attention_arguments = {"num_heads": 4} | ratios | attention_arguments
    plan = blocks.Attention(
        *(attention, attention_stages, attention_arguments),
        scales=SCALES,
        image_size=224,
        largest_map=14,
    )
    inputs = blocks.image_input(input_shape)
    x = blocks.convolution(inputs, _rounded(32 * width), 3, strides=2, name="stem_conv")
    x = blocks.normalize(x, "stem")
    for number, stage in enumerate(STAGES, 1):
        if stage.strides > 1:
            x = blocks.level(x, SCALES[number - 2])
        filters = _rounded(stage.filters * width)
        for index in range(1, stage.repeats + 1):
            strides = stage.strides if index == 1 else 1
            x = _bottleneck(x, filters, strides, stage, plan, number, f"stage{number}_block{index}")
    x = blocks.normalize(blocks.convolution(x, 1280, 1, name="last_conv"), "last")
    x = blocks.level(x, SCALES[-1])
    if include_top:
        x = blocks.classify(x, classes, classifier_activation, dropout)
    return keras.Model(inputs, x, name=name or f"mnasnet_{width:g}")


def _rounded(channels):
    """Rounds to the nearest multiple of 8 that keeps nine tenths."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def _bottleneck(x, filters, strides, stage, attention, number, name):
    channels = x.shape[blocks.channel_axis()]
    y = x
    if stage.expansion > 1:
        inner = channels * stage.expansion
        y = attention.convolution(y, inner, 1, 1, number, f"{name}_1")
        y = blocks.normalize(y, f"{name}_1")
    y = blocks.depthwise(y, stage.kernel_size, strides, f"{name}_2_conv")
    y = blocks.normalize(y, f"{name}_2")
    if stage.squeeze:  # a quarter of the channels before the expansion
        y = layers.SqueezeExcite(4 * stage.expansion, name=f"{name}_squeeze")(y)
    y = blocks.convolution(y, filters, 1, name=f"{name}_3_conv")
    y = blocks.normalize(y, f"{name}_3", activation=None)
    y = attention.block_gate(y, number, name)
    if strides > 1 or channels != filters:
        return y
    return keras.layers.Add(name=f"{name}_add")([x, y])
