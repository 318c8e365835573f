"""Wide residual networks, plain and with attention (Zagoruyko and Komodakis, 2016)."""

from typing import Any, Literal

import keras

from keras_visattn.models import blocks
from keras_visattn.ops import checks
from keras_visattn.typing import Activation, Shape

SCALES = (1, 2, 4)


def WideResNet(
    depth: int = 28,
    width: int = 10,
    attention: Literal["se", "ge", "bam", "cbam", "gala", "augmented", "local"] | None = None,
    attention_stages: int | tuple[int, ...] | None = None,
    input_shape: Shape = (None, None, 3),
    classes: int = 100,
    include_top: bool = True,
    classifier_activation: Activation | None = "softmax",
    dropout: float = 0.0,
    name: str | None = None,
    **attention_arguments: Any,
) -> keras.Model:
    """Makes a wide residual network for small images, with one kind of attention or with none.

    Three stages of basic blocks that normalize and rectify before they convolve. Attention goes
    where `ResNet` puts it in basic blocks; augmented convolutions have their layer's ratios,
    which are the paper's for this network, and see the whole map.

    Args:
        depth: Integer, 4 more than a multiple of 6.
        width: Integer, how many times wider than 16, 32 and 64 channels the stages are.
        attention: As in `ResNet`.
        attention_stages: Integer or tuple of integers from 1 to 3, the stages that get it.
            Defaults to all; for `"bam"`, to the first two.
        input_shape: Tuple, height, width and channels of the images; height and width may be
            `None`. Relative tables are then made for images of 32.
        classes: Integer, number of classes.
        include_top: Boolean. If `False`, the output is the last stage's map; see `pyramid` for
            all of them, the last one normalized and rectified.
        classifier_activation: Activation of the classifier; `None` gives logits.
        dropout: Float in [0, 1], share of the values dropped between a block's convolutions.
        name: String, name of the model.
        **attention_arguments: Arguments of the attention layer over its defaults.

    Returns:
        A functional `keras.Model`. Stages' outputs are named `P0`, `P1` and `P2`.

    Raises:
        ValueError: If an argument is none of these, or an attention layer refuses its arguments.

    Reference:
        Zagoruyko and Komodakis, 2016, "Wide Residual Networks"
        (https://arxiv.org/abs/1605.07146); Bello et al., 2019, section 4.1
        (https://arxiv.org/abs/1904.09925).

    Examples:
        >>> model = keras_visattn.models.WideResNet(10, 1, classes=10)
        >>> keras.ops.shape(model(keras.random.normal((2, 32, 32, 3))))
        (2, 10)
    """
    checks.positive_integer("depth", depth)
    checks.positive_integer("width", width)
    checks.fraction("dropout", dropout)
    count, rest = divmod(depth - 4, 6)
    if rest or count < 1:
        raise ValueError(
            f"`depth` must be 4 more than a positive multiple of 6. Received: depth={depth}"
        )
    if attention_stages is None:
        attention_stages = (1, 2) if attention == "bam" else (1, 2, 3)
    plan = blocks.Attention(
        *(attention, attention_stages, attention_arguments),
        scales=SCALES,
        image_size=32,
        largest_map=32,
    )
    inputs = blocks.image_input(input_shape)
    x = blocks.convolution(inputs, 16, 3, name="stem_conv")
    for stage, scale in enumerate(SCALES, 1):
        for index in range(1, count + 1):
            strides = 2 if stage > 1 and index == 1 else 1
            block_name = f"stage{stage}_block{index}"
            x = _block(x, 8 * 2**stage * width, strides, plan, stage, block_name, dropout)
        x = plan.stage_gate(x, stage, f"stage{stage}")
        if stage == len(SCALES):
            x = blocks.normalize(x, "last")
        x = blocks.level(x, scale)
    if include_top:
        x = blocks.classify(x, classes, classifier_activation)
    return keras.Model(inputs, x, name=name or f"wide_resnet{depth}_{width}")


def _block(x, filters, strides, attention, stage, name, dropout):
    y = blocks.normalize(x, f"{name}_1")
    if strides > 1 or x.shape[blocks.channel_axis()] != filters:
        x = blocks.convolution(y, filters, 1, strides, name=f"{name}_shortcut_conv")
    y = attention.convolution(y, filters, 3, strides, stage, f"{name}_1")
    y = blocks.normalize(y, f"{name}_2")
    if dropout:
        y = keras.layers.Dropout(dropout, name=f"{name}_dropout")(y)
    y = attention.convolution(y, filters, 3, 1, stage, f"{name}_2", kinds=("local",))
    y = attention.block_gate(y, stage, name)
    return keras.layers.Add(name=f"{name}_add")([x, y])
