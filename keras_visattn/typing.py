"""The types of arguments and of answers.

Keras has no types of its own, and backends have different ones: to a type checker a tensor and a
model are `Any`. What it can check is everything else, the keyword arguments of every layer too.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypedDict

Tensor: TypeAlias = Any
"""A tensor of the backend, a symbolic one, or an array."""

Tensors: TypeAlias = Any
"""A tensor, or a list or a dictionary of them, as a model takes them."""

Outputs: TypeAlias = Any
"""A tensor, or a tuple that begins with it where scores or a cache are asked for, too."""

Shape: TypeAlias = tuple[int | None, ...]
"""`None` where a size is not known."""

IntOrPair: TypeAlias = int | tuple[int, int]
"""One for both axes of a map, or one for the height and one for the width."""

DataFormat: TypeAlias = Literal["channels_last", "channels_first"]
Padding: TypeAlias = Literal["same", "valid"]
Extrapolation: TypeAlias = Literal["interpolate", "clip"]
Pooling: TypeAlias = Literal["avg", "max", "lp", "lse"]
Verbose: TypeAlias = bool | Literal["auto", 0, 1]

# What Keras' `get` functions take: a name, a config, or an object, which can be called.
Activation: TypeAlias = str | Callable[..., Tensor]
Initializer: TypeAlias = str | dict[str, Any] | Callable[..., Tensor]
Regularizer: TypeAlias = str | dict[str, Any] | Callable[..., Tensor]
Constraint: TypeAlias = str | dict[str, Any] | Callable[..., Tensor]


class LayerArguments(TypedDict, total=False):
    """Keyword arguments of every layer."""

    activity_regularizer: Regularizer | None
    autocast: bool
    dtype: Any  # a name, or a policy of Keras
    name: str | None
    trainable: bool


class ImageLayerArguments(LayerArguments, total=False):
    """Keyword arguments of layers on images."""

    data_format: DataFormat | None


class KernelLayerArguments(LayerArguments, total=False):
    """Keyword arguments of layers with kernels and biases."""

    kernel_initializer: Initializer
    bias_initializer: Initializer
    kernel_regularizer: Regularizer | None
    bias_regularizer: Regularizer | None
    kernel_constraint: Constraint | None
    bias_constraint: Constraint | None


class ImageAttentionArguments(KernelLayerArguments, ImageLayerArguments, total=False):
    """Keyword arguments of layers on images with kernels and biases."""


class ImageGateArguments(ImageAttentionArguments, total=False):
    """Keyword arguments of layers that multiply an image by a gate."""

    identity_start: bool
