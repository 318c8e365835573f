"""Other layers in the place of, or behind, some of a model's layers."""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras

from keras_visattn.surgery.graph import candidates
from keras_visattn.surgery.matching import Match, find
from keras_visattn.surgery.rebuilding import copy_values, make_again, rebuild

NewLayer: TypeAlias = keras.Layer | Sequence[keras.Layer] | Callable[[keras.Layer], Any]


def replace(
    model: keras.Model, match: Match, layer: NewLayer, transfer: Callable[..., None] | None = None
) -> keras.Model:
    """Makes a model again with other layers in the place of some.

    The given model stays as it is. In the new one every layer that is not replaced has the same
    name, settings, weights and statistics, bit by bit. A layer that is called several times is
    replaced by one that is called as often. What was frozen stays frozen; new layers train.

    Args:
        model: As in `find`.
        match: As in `find`.
        layer: A layer to copy, with its weights if it has any; or a list of layers to call one
            after another; or a function of the matched layer that gives either. The last one gets
            the matched layer's name. A layer of the global dtype policy gets the matched one's.
        transfer: Function of the matched layer and the new ones, `transfer(old, *new)`, called
            when these have their weights: it may give them some of the old.

    Returns:
        A new model, of the same class where this is Keras' own, or the class' own config holds a
        backbone and the match lies in it; functional otherwise. It is compiled if the old one
        was, with a fresh optimizer.

    Raises:
        ValueError: If nothing matches, the new layers do not keep the output's shape, or the
            model cannot be made again: it has no graph, computes something beside it, or holds a
            layer without a proper config.

    Examples:
        >>> model = keras.applications.VGG16(include_top=False, weights=None)
        >>> pool = keras.layers.AveragePooling2D(2)
        >>> new = keras_visattn.surgery.replace(model, keras.layers.MaxPooling2D, pool)
        >>> type(new.get_layer("block1_pool")).__name__
        'AveragePooling2D'
    """
    names = _Names(model)
    edits = []
    for candidate in find(model, match):
        sources = _sources(layer, candidate)
        new_names = [*names.behind(candidate, sources[:-1]), candidate.layer.name]
        edits.append((candidate.layer, sources, _copies(sources, new_names, candidate)))
        _check_shape(candidate, sources, candidate.input_shape)
    rebuilt = rebuild(model, {id(old): new for old, _, new in edits}, {})
    _copy_given_values(edits)
    if transfer is not None:
        for old, _, new in edits:
            transfer(old, *new)
    return rebuilt


def insert_after(model: keras.Model, match: Match, layer: NewLayer) -> keras.Model:
    """Makes a model again with another layer behind some.

    What read the output of a matched layer reads that of the new one, which is named after both,
    such as `"conv1_cbam"`. All else is as in `replace`.

    Args:
        model: As in `find`.
        match: As in `find`.
        layer: A layer to copy, a list of them, or a function of the matched layer, as in
            `replace`. It must keep the shape.

    Returns:
        A new model, as in `replace`.

    Raises:
        ValueError: As in `replace`.

    Examples:
        >>> model = keras.applications.VGG16(include_top=False, weights=None)
        >>> gate = keras_visattn.layers.CBAM(identity_start=True)
        >>> new = keras_visattn.surgery.insert_after(model, "block?_pool", gate)
        >>> len(new.layers) - len(model.layers)
        5
    """
    names = _Names(model)
    edits = []
    for candidate in find(model, match):
        sources = _sources(layer, candidate)
        new_names = names.behind(candidate, sources)
        edits.append((candidate.layer, sources, _copies(sources, new_names, candidate)))
        _check_shape(candidate, sources, candidate.output_shape)
    rebuilt = rebuild(model, {}, {id(old): new for old, _, new in edits})
    _copy_given_values(edits)
    return rebuilt


class _Names:
    """Names new layers after those that they stand behind, each once in a model."""

    def __init__(self, model):
        self.taken = {path.rpartition("/")[-1] for _, path, *_ in candidates(model)}

    def behind(self, candidate, layers):
        return [self._free(f"{candidate.layer.name}_{_kind(layer)}") for layer in layers]

    def _free(self, name):
        names = (name if count == 1 else f"{name}_{count}" for count in range(1, 10_000))
        free = next(name for name in names if name not in self.taken)
        self.taken.add(free)
        return free


def _kind(layer):
    return re.sub(r"_\d+$", "", layer.name)  # Keras counts the layers that nobody named


def _sources(layer, candidate):
    """Lists the layers that a user gives for a match."""
    given = layer
    if not isinstance(layer, (keras.Layer, list, tuple)):
        if not callable(layer):
            raise ValueError(
                "`layer` must be a layer, a list of layers, or a function that gives them. "
                f"Received: layer={layer!r}"
            )
        try:
            given = layer(candidate.layer)
        except ValueError as error:
            raise ValueError(f"For {candidate.path}: {error}") from error
    sources = list(given) if isinstance(given, (list, tuple)) else [given]
    if not sources or not all(isinstance(source, keras.Layer) for source in sources):
        raise ValueError(
            f"`layer` must give a layer or a list of layers. Received: {given!r} for "
            f"{candidate.path}"
        )
    return sources


def _copies(sources, names, candidate):
    policy = getattr(candidate.layer, "dtype_policy", None)
    copies = []
    for source, name in zip(sources, names, strict=True):
        changes = {"name": name}
        unsaid = source.dtype_policy == keras.config.dtype_policy()
        if unsaid and policy is not None and policy.quantization_mode is None:
            changes["dtype"] = keras.dtype_policies.serialize(policy)
        copies.append(make_again(source, **changes))
    return copies


def _copy_given_values(edits):
    """Gives new layers the weights of those they are copied from, where these have any."""
    for _, sources, new in edits:
        for source, copy in zip(sources, new, strict=True):
            if source.weights:
                copy_values(source, copy)


def _inputs(layer, shape):
    """Lists what a layer is called with: a tensor, a list of them, or several, as `call` says."""
    if not isinstance(shape, list):
        return [keras.KerasTensor(shape)]
    tensors = [keras.KerasTensor(one) for one in shape]
    named = inspect.signature(layer.call).parameters.values()
    needed = [p for p in named if p.kind == p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    return tensors if len(needed) > 1 else [tensors]


def _check_shape(candidate, sources, input_shape):
    """Refuses layers that do not keep the output's shape, trying copies without values."""
    try:
        with keras.StatelessScope(initialize_variables=False):
            inputs = _inputs(candidate.layer, input_shape)
            for source in sources:
                x = make_again(source)(*inputs)
                inputs = [x]
        shape, reason = tuple(x.shape), ""
    except (TypeError, ValueError) as error:
        shape, reason = None, f" ({error})"
    if shape != candidate.output_shape:
        raise ValueError(
            "The new layers must keep the shape of the matched layer's output. Received: "
            f"{candidate.path}, input_shape={input_shape}, "
            f"output_shape={candidate.output_shape}, "
            f"new layers={[type(source).__name__ for source in sources]}, with {shape}{reason}"
        )
