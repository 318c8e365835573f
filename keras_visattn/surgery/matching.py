"""Which layers of a model are meant."""

import dataclasses
import fnmatch
import inspect
from collections.abc import Callable
from typing import TypeAlias

import keras

from keras_visattn.ops import checks
from keras_visattn.surgery.graph import Candidate, candidates, hidden_convolutions
from keras_visattn.typing import Shape


@dataclasses.dataclass(frozen=True)
class Last:
    """The last of the layers that match.

    Args:
        count: Integer, how many.
        match: Which layers count, as in `find`. Defaults to the convolutions over more than one
            pixel, `is_spatial_convolution`.
    """

    count: int
    match: "Match | None" = None

    def __post_init__(self):
        checks.positive_integer("count", self.count)


Match: TypeAlias = str | type | tuple[type, ...] | Callable[..., bool] | Last


def is_spatial_convolution(layer: keras.Operation, input_shape: Shape, output_shape: Shape) -> bool:
    """Whether a layer is a `Conv2D` over more than one pixel that attention can stand for.

    It has one group, no dilation and the same stride along both axes.
    """
    return (
        isinstance(layer, keras.layers.Conv2D)
        and max(layer.kernel_size) > 1
        and layer.groups == 1
        and set(layer.dilation_rate) == {1}
        and len(set(layer.strides)) == 1
    )


def find(model: keras.Model, match: Match) -> list[Candidate]:
    """Finds the layers that `replace` and `insert_after` would take.

    Args:
        model: Functional or `keras.Sequential` model, built, or a model with a backbone, such as
            a classifier of KerasHub or KerasCV; then in the backbone. Models inside it are
            searched too.
        match: A class or a tuple of classes; a string, the pattern of a layer's name or of its
            path through inner models, with `*` and `?`; a function of `(layer, input shape,
            output shape)`; or `Last(n)`, the last n spatial convolutions.

    Returns:
        A list of tuples `(layer, path, input_shape, output_shape)`, in the order of computation.

    Raises:
        ValueError: If `match` is nothing of these, nothing matches, or the model has no graph.

    Examples:
        >>> model = keras_visattn.models.ResNet(18, filters=16)
        >>> [path for _, path, *_ in keras_visattn.surgery.find(model, "stage4*_2_conv")]
        ['stage4_block1_2_conv', 'stage4_block2_2_conv']
    """
    found = candidates(model)
    matched = _select(found, match)
    if not matched:
        names = [f"{path} ({type(layer).__name__})" for layer, path, *_ in found]
        hidden = hidden_convolutions(model)
        unreached = f"; these hide convolutions out of reach: {_start(hidden)}" if hidden else ""
        raise ValueError(
            f"`match` must fit a layer of the graph. Received: match={match}, {len(names)} layers, "
            f"{_start(names)}{unreached}"
        )
    return matched


def _start(names, count=30):
    return ", ".join(names[:count] + ["..."] * (len(names) > count))


def _select(found, match):
    if isinstance(match, Last):
        within = is_spatial_convolution if match.match is None else match.match
        return _select(found, within)[-match.count :]
    if isinstance(match, str):
        return [c for c in found if _fits(c.layer.name, match) or _fits(c.path, match)]
    if inspect.isclass(match) or isinstance(match, tuple):
        return [c for c in found if isinstance(c.layer, match)]
    if not isinstance(match, Callable):
        raise ValueError(
            "`match` must be a class, a tuple of classes, a pattern of names, a function of a "
            f"layer and its input and output shapes, or `Last(n)`. Received: match={match!r}"
        )
    return [c for c in found if match(c.layer, c.input_shape, c.output_shape)]


def _fits(name, pattern):
    return fnmatch.fnmatchcase(name, pattern)
