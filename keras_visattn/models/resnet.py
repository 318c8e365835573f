"""Residual networks, plain and with each attention of the papers (He et al., 2015)."""

import functools
from typing import Any, Literal

import keras

from keras_visattn import layers
from keras_visattn.models import blocks
from keras_visattn.ops import checks
from keras_visattn.typing import Activation, Shape

BLOCKS = {
    18: (2, 2, 2, 2),
    26: (1, 2, 4, 1),
    34: (3, 4, 6, 3),
    38: (2, 3, 5, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BASIC_DEPTHS = (18, 34)
SCALES = (4, 8, 16, 32)
PAPERS_STAGES: dict[str | None, tuple[int, ...]] = {"augmented": (2, 3, 4), "bam": (1, 2, 3)}


def ResNet(
    depth: int = 50,
    attention: Literal["se", "ge", "bam", "cbam", "gala", "augmented", "local"] | None = None,
    attention_stages: int | tuple[int, ...] | None = None,
    stem: Literal["conv", "attention"] = "conv",
    input_shape: Shape = (None, None, 3),
    classes: int = 1000,
    include_top: bool = True,
    classifier_activation: Activation | None = "softmax",
    filters: int = 64,
    cardinality: int = 1,
    width: int = 64,
    name: str | None = None,
    **attention_arguments: Any,
) -> keras.Model:
    """Makes a residual network with one kind of attention, or with none.

    Version 1.5: a bottleneck strides in its 3x3 convolution. Padding is the same on all sides, so
    that PyTorch's weights mean the same. Where the attention goes follows its paper:

    - `"se"`, `"ge"`, `"cbam"` and `"gala"` gate the residual branch of each block, before the
      addition;
    - `"bam"` gates the output of the first three stages;
    - `"augmented"` augments the 3x3 convolution of each bottleneck, or the first of each basic
      block, in the last three stages: `AugmentedConv2D` with its paper's ratios, at depth 18 and
      34 `key_ratio=value_ratio=0.25`; a map of more than 14 pixels a side (for an image of 224)
      is pooled for the attention;
    - `"local"` replaces all 3x3 convolutions by `LocalSelfAttention2D`; a stride is an average
      pool after it.

    Args:
        depth: 18, 26, 34, 38, 50, 101 or 152. 18 and 34 have basic blocks, the others
            bottlenecks.
        attention: `None`, `"se"`, `"ge"`, `"bam"`, `"cbam"`, `"gala"`, `"augmented"` or
            `"local"`.
        attention_stages: Integer or tuple of integers from 1 to 4, the stages that get it.
            Defaults to the paper's own choice, which is all of them where nothing else is said
            above.
        stem: `"conv"`, a 7x7 convolution and a maximum pool, or `"attention"`,
            `LocalAttentionStem2D`.
        input_shape: Tuple, height, width and channels of the images; height and width may be
            `None`. Relative tables are then made for images of 224.
        classes: Integer, number of classes.
        include_top: Boolean. If `False`, the output is the last stage's map; see `pyramid` for
            all of them.
        classifier_activation: Activation of the classifier; `None` gives logits.
        filters: Integer, channels of the first stage; the others have 2, 4 and 8 times as many,
            and bottlenecks give out 4 times these. The stem always has 64. 96 at depth 18 is the
            CBAM paper's "WideResNet18 (widen=1.5)".
        cardinality: Integer, groups of the 3x3 convolutions of bottlenecks. 32 with `width=4` is
            ResNeXt's 32x4d.
        width: Integer, channels of a group of these convolutions for each 64 of the stage.
        name: String, name of the model.
        **attention_arguments: Arguments of the attention layer over its defaults, such as
            `kernel_size`, `num_heads`, `key_ratio`, `value_ratio`, `position` or
            `identity_start`.

    Returns:
        A functional `keras.Model`. Blocks are named `stage1_block1` and so on, stages' outputs
        `P2` to `P5`.

    Raises:
        ValueError: If an argument is none of these, `cardinality` or `width` is given at depth 18
            or 34, or an attention layer refuses its arguments.

    Reference:
        He et al., 2015, "Deep Residual Learning for Image Recognition"
        (https://arxiv.org/abs/1512.03385), and the paper of the attention.

    Examples:
        >>> model = keras_visattn.models.ResNet(18, "cbam", filters=16, classes=10)
        >>> keras.ops.shape(model(keras.random.normal((2, 40, 64, 3))))
        (2, 10)
    """
    checks.choice("depth", depth, tuple(BLOCKS))
    checks.choice("stem", stem, ("conv", "attention"))
    checks.positive_integer("filters", filters)
    checks.positive_integer("cardinality", cardinality)
    checks.positive_integer("width", width)
    if attention_stages is None:
        attention_stages = PAPERS_STAGES.get(attention, (1, 2, 3, 4))
    if depth in BASIC_DEPTHS and attention == "augmented":
        attention_arguments = {
            f"{role}_ratio": 0.25
            for role in ("key", "value")
            if f"total_{role}_dim" not in attention_arguments
        } | attention_arguments
    plan = blocks.Attention(
        *(attention, attention_stages, attention_arguments),
        scales=SCALES,
        image_size=224,
        largest_map=14,
    )
    if depth in BASIC_DEPTHS:
        if (cardinality, width) != (1, 64):
            raise ValueError(
                "`cardinality` and `width` must be 1 and 64 at the depths of basic blocks. "
                f"Received: cardinality={cardinality}, width={width}, depth={depth}"
            )
        block = _basic_block
    else:
        block = functools.partial(_bottleneck, cardinality=cardinality, width=width)

    inputs = blocks.image_input(input_shape)
    x = _stem(inputs) if stem == "conv" else layers.LocalAttentionStem2D(64, name="stem")(inputs)
    for stage, count in enumerate(BLOCKS[depth], 1):
        for index in range(1, count + 1):
            strides = 2 if stage > 1 and index == 1 else 1
            block_name = f"stage{stage}_block{index}"
            x = block(x, filters * 2 ** (stage - 1), strides, plan, stage, block_name)
        x = plan.stage_gate(x, stage, f"stage{stage}")
        x = blocks.level(x, SCALES[stage - 1])
    if include_top:
        x = blocks.classify(x, classes, classifier_activation)
    return keras.Model(inputs, x, name=name or f"resnet{depth}")


def _stem(x):
    x = blocks.convolution(x, 64, 7, strides=2, name="stem_conv")
    x = blocks.normalize(x, "stem")
    # Behind a ReLU, zeros pad a maximum as well as minus infinity does.
    x = blocks.pad(x, 3, 2, "stem_pool")
    return keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)


def _basic_block(x, filters, strides, attention, stage, name):
    y = attention.convolution(x, filters, 3, strides, stage, f"{name}_1")
    y = blocks.normalize(y, f"{name}_1")
    y = attention.convolution(y, filters, 3, 1, stage, f"{name}_2", kinds=("local",))
    y = blocks.normalize(y, f"{name}_2", activation=None)
    return _add(x, y, strides, attention, stage, name)


def _bottleneck(x, filters, strides, attention, stage, name, cardinality, width):
    inner = filters * width // 64 * cardinality
    y = blocks.convolution(x, inner, 1, name=f"{name}_1_conv")
    y = blocks.normalize(y, f"{name}_1")
    y = attention.convolution(y, inner, 3, strides, stage, f"{name}_2", groups=cardinality)
    y = blocks.normalize(y, f"{name}_2")
    y = blocks.convolution(y, 4 * filters, 1, name=f"{name}_3_conv")
    y = blocks.normalize(y, f"{name}_3", activation=None)
    return _add(x, y, strides, attention, stage, name)


def _add(x, y, strides, attention, stage, name):
    """Gates the branch and adds it to its input, projected where their shapes differ."""
    y = attention.block_gate(y, stage, name)
    channels = y.shape[blocks.channel_axis()]
    if strides > 1 or x.shape[blocks.channel_axis()] != channels:
        x = blocks.convolution(x, channels, 1, strides, name=f"{name}_shortcut_conv")
        x = blocks.normalize(x, f"{name}_shortcut", activation=None)
    x = keras.layers.Add(name=f"{name}_add")([x, y])
    return keras.layers.Activation("relu", name=f"{name}_relu")(x)
