"""The papers' ways to put attention into a network, each one call."""

from typing import Any, Literal

import keras

from keras_visattn import layers
from keras_visattn.layers.kernel_layer import KERNEL_ARGUMENTS
from keras_visattn.ops import checks
from keras_visattn.surgery.editing import insert_after, replace
from keras_visattn.surgery.graph import residual_branches, stage_ends
from keras_visattn.surgery.matching import Match, find, is_spatial_convolution


def add_cbam(
    model: keras.Model,
    where: Literal["block", "stage"] = "block",
    identity_start: bool = True,
    **arguments: Any,
) -> keras.Model:
    """Puts a `CBAM` behind every residual branch of a network, or every stage.

    The places are found in the graph, whatever the names. A block is an addition of two maps: its
    branch, the input that has passed through more operations, is gated before the addition, as
    in the paper. A stage ends with the last map before the maps become smaller.

    Args:
        model: As in `find`.
        where: `"block"` or `"stage"`.
        identity_start: Boolean, as in `CBAM`. If `True`, the new model answers as the old one did
            until it is trained.
        **arguments: Arguments of `CBAM`.

    Returns:
        A new model, as in `replace`.

    Raises:
        ValueError: If the network has no such block or stage, or as in `replace`.

    Reference:
        Woo et al., 2018, "CBAM: Convolutional Block Attention Module", section 3, figure 3
        (https://arxiv.org/abs/1807.06521).

    Examples:
        >>> model = keras_visattn.models.ResNet(18, filters=16)
        >>> new = keras_visattn.surgery.add_cbam(model, where="stage")
        >>> [layer.name for layer in new.layers if layer.name.endswith("cbam")]
        ['P2_cbam', 'P3_cbam', 'P4_cbam', 'P5_cbam']
    """
    places = {"block": residual_branches, "stage": stage_ends}
    checks.choice("where", where, tuple(places))
    chosen = {id(layer) for layer in places[where](model)}
    if not chosen:
        raise ValueError(
            f"`model` must have a {where} of maps; put a gate behind layers of your choice by "
            f"`insert_after`. Received: {model.name}, where={where!r}"
        )
    gate = layers.CBAM(identity_start=identity_start, name="cbam", **arguments)
    return insert_after(model, lambda layer, *shapes: id(layer) in chosen, gate)


def augment_convolutions(
    model: keras.Model,
    last: int | None = None,
    match: Match = is_spatial_convolution,
    keep_kernel: bool = True,
    **arguments: Any,
) -> keras.Model:
    """Augments convolutions with global attention, the last ones first, as the paper does.

    Each becomes an `AugmentedConv2D` of the same filters, stride, padding, bias and activation.

    Args:
        model: As in `find`.
        last: Integer, how many convolutions, counted from the output; `None` for all but the
            first, which sees the image.
        match: As in `find`, which convolutions count.
        keep_kernel: Boolean. If `True`, the channels that are still convolved keep their kernels
            and biases.
        **arguments: Arguments of `AugmentedConv2D`.

    Returns:
        A new model, as in `replace`.

    Raises:
        ValueError: If nothing matches, an argument does not suit the filters of a convolution, or
            as in `replace`.

    Reference:
        Bello et al., 2019, "Attention Augmented Convolutional Networks", section 4
        (https://arxiv.org/abs/1904.09925).

    Examples:
        >>> shape = (32, 32, 3)
        >>> model = keras.applications.VGG16(include_top=False, weights=None, input_shape=shape)
        >>> new = keras_visattn.surgery.augment_convolutions(model, last=3)
        >>> [layer.name for layer in new.layers if "augmented" in layer.name]
        ['block5_conv1_augmented', 'block5_conv2_augmented', 'block5_conv3_augmented']
    """

    def augmented(convolution):
        kept = _kept_arguments(convolution) | {
            "kernel_size": convolution.kernel_size,
            "padding": convolution.padding,
        }
        layer = layers.AugmentedConv2D(**kept | {"name": "augmented"} | arguments)
        return [layer, *_activation(convolution)]

    transfer = _keep_kernel if keep_kernel else None
    return replace(model, _chosen(model, match, last), augmented, transfer)


def replace_convolutions(
    model: keras.Model,
    last: int | None = None,
    match: Match = is_spatial_convolution,
    **arguments: Any,
) -> keras.Model:
    """Replaces convolutions by local attention, the last ones first.

    Each becomes a `LocalSelfAttention2D` of the same filters, bias and activation; a stride
    becomes an average pool after the attention. Where the convolution has no padding, the
    attention sees the pixels in the centres of its windows.

    Args:
        model: As in `find`.
        last: Integer, how many convolutions, counted from the output; `None` for all but the
            first, which sees the image.
        match: As in `find`, which convolutions count.
        **arguments: Arguments of `LocalSelfAttention2D`.

    Returns:
        A new model, as in `replace`. The new layers have no weights of the old.

    Raises:
        ValueError: If nothing matches, an argument does not suit the filters of a convolution, or
            as in `replace`.

    Reference:
        Ramachandran et al., 2019, "Stand-Alone Self-Attention in Vision Models", section 3
        (https://arxiv.org/abs/1906.05909).

    Examples:
        >>> model = keras_visattn.models.ResNet(18, filters=16)
        >>> new = keras_visattn.surgery.replace_convolutions(model, last=2, kernel_size=5)
        >>> type(new.get_layer("stage4_block2_2_conv")).__name__
        'LocalSelfAttention2D'
    """

    def local(convolution):
        layer = layers.LocalSelfAttention2D(
            **_kept_arguments(convolution) | {"name": "local"} | arguments
        )
        return [*_crop(convolution), layer, *_activation(convolution)]

    return replace(model, _chosen(model, match, last), local)


def _chosen(model, match, last):
    """Says which convolutions are meant, by themselves."""
    found = find(model, match)
    for layer, path, *shapes in found:
        if not is_spatial_convolution(layer, *shapes):
            raise ValueError(
                "`match` must choose `Conv2D` layers over more than one pixel, with one group, no "
                f"dilation and the same stride along both axes. Received: {path}, a "
                f"{type(layer).__name__}"
            )
    count = len(found) - 1 if last is None else last
    if not 1 <= count <= len(found):
        raise ValueError(
            f"`last` must be from 1 to the {len(found)} convolutions that match, and more than one "
            f"must match if it is None. Received: last={last}"
        )
    chosen = {id(layer) for layer, *_ in found[-count:]}
    return lambda layer, *shapes: id(layer) in chosen


def _kept_arguments(convolution):
    names = ("filters", "use_bias", "data_format", *(name for name, _ in KERNEL_ARGUMENTS))
    kept = {name: getattr(convolution, name) for name in names}
    if convolution.activity_regularizer is not None:
        kept["activity_regularizer"] = convolution.activity_regularizer
    return kept | {"strides": convolution.strides[0]}


def _activation(convolution):
    if convolution.activation is keras.activations.linear:
        return []
    return [keras.layers.Activation(convolution.activation)]


def _crop(convolution):
    """Gives the attention a pixel for each window of a convolution without padding."""
    edges = [((size - 1) // 2, size // 2) for size in convolution.kernel_size]
    if convolution.padding == "same":
        return []
    return [keras.layers.Cropping2D(edges, data_format=convolution.data_format, name="crop")]


def _keep_kernel(convolution, augmented, *_):
    """Gives the convolved channels of an augmented convolution the first of the old ones."""
    kept = augmented.convolution
    if kept is None:
        return
    old, new = convolution.weights, kept.weights
    if len(old) != len(new) or old[0].shape[:-1] != new[0].shape[:-1]:
        raise ValueError(
            "`keep_kernel` must be false if `kernel_size` or `use_bias` changes. Received: "
            f"{convolution.name}, with weights {[tuple(w.shape) for w in old]}, and new ones "
            f"{[tuple(w.shape) for w in new]}"
        )
    for weight, kept_weight in zip(old, new, strict=True):
        kept_weight.assign(weight[..., : kept.filters])
