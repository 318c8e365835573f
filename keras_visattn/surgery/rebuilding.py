"""Makes a model again with some layers replaced, others inserted, and all else as it was."""

import inspect
import itertools
import warnings

import keras

from keras_visattn.surgery import backbones
from keras_visattn.surgery.graph import backbone_of, is_walkable

# What a class may compute beside its graph; a model made of the graph alone would lack it.
OWN_COMPUTATIONS = ("call", "compute_loss", "predict_step", "test_step", "train_step")


def rebuild(model, replaced, inserted):
    """Makes a model again, with other layers in some places.

    Args:
        model: Functional or `keras.Sequential` model, or a model with a backbone. It stays as it
            is.
        replaced: Dictionary from the `id` of a layer to the list of new layers in its place.
        inserted: Dictionary from the `id` of a layer to the list of new layers behind it.

    Returns:
        A new model with the state of every layer that stays.

    Raises:
        ValueError: If the model computes something beside its graph, or a layer cannot be made
            again from its config.
    """
    work = _Rebuilding(replaced, inserted)
    rebuilt = work.model(model)
    work.copy_state(model)
    work.copy_trainable()
    _compile_as(model, rebuilt)
    return rebuilt


class _Rebuilding:
    """Remembers what stands for each old layer, so that shared layers stay shared."""

    def __init__(self, replaced, inserted):
        self.replaced = replaced
        self.inserted = inserted
        self.rows = {}  # from the id of an old layer to the new layers called in its place
        self.followers = {}  # from the id of the first of them to the others
        self.foreign = {id(row[0]) for row in replaced.values()}
        self.visited = []  # every old layer and operation
        self.copies = []  # pairs of an old and a new layer that share their state
        self.models = []  # pairs of an old and a new model, the outer ones last

    def model(self, model):
        _check_computes_its_graph(model)
        backbone = backbone_of(model)
        if backbone is not None:
            rebuilt = self._with_backbone(model, backbone)
        elif isinstance(model, keras.Sequential):
            rebuilt = self._sequential(model)
        else:
            rebuilt = self._functional(model)
        self.models.append((model, rebuilt))
        return rebuilt

    def _with_backbone(self, model, backbone):
        config = {**model.get_config(), "backbone": self.row(backbone)[0]}
        rebuilt = type(model).from_config(config)
        heads = zip(model.layers, rebuilt.layers, strict=True)
        self.copies += [(old, new) for old, new in heads if not isinstance(old, keras.Model)]
        self.visited += model.layers
        return rebuilt

    def _sequential(self, model):
        (x,) = model.inputs
        start = keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)
        layers = [new for layer in model.layers for new in self.row(layer)]
        return keras.Sequential([start, *layers], name=model.name)

    def _functional(self, model):
        outputs = {"outputs": model.output, "levels": getattr(model, "pyramid_outputs", {})}
        # This view is not compiled and is of Keras' own class: a clone of it is of the graph alone.
        view = keras.Model(model.input, outputs, name=model.name)
        view = keras.models.clone_model(
            view, clone_function=lambda layer: self.row(layer)[0], call_function=self._call
        )
        rows = {layer.name: self.rows.get(id(layer)) for layer in model.layers}
        renamed = {name: row[-1].name for name, row in rows.items() if row}
        return backbones.like(model, view.input, **view.output, renamed=renamed)

    def _call(self, first, *args, **kwargs):
        if id(first) in self.foreign:  # another class may take other arguments
            known = inspect.signature(first.call).parameters
            kwargs = {name: value for name, value in kwargs.items() if name in known}
        outputs = first(*args, **kwargs)
        for layer in self.followers[id(first)]:
            outputs = layer(outputs)
        return outputs

    def row(self, layer):
        """Gives the new layers that are called in the place of an old one, one after another."""
        if id(layer) not in self.rows:
            row = self.replaced.get(id(layer)) or [self._copy(layer)]
            row = [*row, *self.inserted.get(id(layer), ())]
            self.rows[id(layer)] = row
            self.followers[id(row[0])] = row[1:]
            self.visited.append(layer)
        return self.rows[id(layer)]

    def _copy(self, layer):
        if is_walkable(layer):
            return self.model(layer)
        new = make_again(layer)
        if isinstance(layer, keras.Layer):
            self.copies.append((layer, new))
        return new

    def copy_state(self, model):
        """Gives the new layers the weights, statistics and seeds of those they stand for."""
        leaves = (layer for layer in self.visited if not is_walkable(layer))
        known = {id(v) for layer in leaves for v in getattr(layer, "variables", ())}
        lost = [v.path for v in model.variables if id(v) not in known]
        if lost:
            raise ValueError(
                "Every variable of `model` must belong to a layer of its graph. "
                f"Received: {model.name}, with {lost}"
            )
        for old, new in self.copies:
            copy_values(old, new)

    def copy_trainable(self):
        """Freezes what was frozen; a new layer in a frozen model trains."""
        copied = {id(new) for _, new in self.copies}
        fresh = {id(x) for row in self.rows.values() for x in row} - copied
        fresh -= {id(new) for _, new in self.models}
        frozen = set()
        for old, new in reversed(self.models):
            if not old.trainable and fresh.isdisjoint(map(id, new._flatten_layers())):
                new.trainable = False
            elif not old.trainable:
                frozen |= set(map(id, old._flatten_layers()))
        for pair in self.copies:
            for old, new in zip(*(layer._flatten_layers() for layer in pair), strict=True):
                trainable = old.trainable and id(old) not in frozen
                if new.trainable != trainable:
                    new.trainable = trainable


def _check_computes_its_graph(model):
    """Refuses a model that a graph does not hold whole."""
    own = itertools.takewhile(lambda c: not c.__module__.startswith("keras."), type(model).__mro__)
    own = list(own)
    computed = [name for name in OWN_COMPUTATIONS if any(name in vars(c) for c in own)]
    if is_walkable(model) and (backbone_of(model) is not None or not computed):
        return
    reason = f", with its own {', '.join(computed)}" if computed else ""
    raise ValueError(
        "`model` must be functional, or a `keras.Sequential` that is built, and compute nothing "
        "beside its graph. Edit the functional models that it is made of, and make a new one of "
        f"them. Received: {model.name}, a {type(model).__name__}{reason}"
    )


def make_again(layer, **changes):
    """Makes a layer or an operation again from its config, with some changes, without its state."""
    if isinstance(layer, keras.layers.Lambda):  # whose config holds no more than its bytecode
        config = keras.Layer.get_config(layer) | changes
        state = layer.function, layer._output_shape, layer.mask, layer.arguments
        return keras.layers.Lambda(*state, **config)
    try:
        config = keras.saving.serialize_keras_object(layer)
        config.pop("build_config", None)
        config["config"] |= changes
        # What is in memory already does not become more dangerous by being copied.
        known = {type(layer).__name__: type(layer)}
        made = keras.saving.deserialize_keras_object(config, known, safe_mode=False)
    except Exception as error:
        if not isinstance(layer, keras.Layer):
            return layer  # it has no state to share
        _refuse(layer, f"{type(error).__name__}: {error}", error)
    if not isinstance(layer, keras.Layer):
        made.name = layer.name  # which a cast's config has since Keras 3.11
    return made


def copy_values(old, new):
    """Gives a layer the weights, statistics and seeds of another of the same kind."""
    shapes = [[tuple(v.shape) for v in layer.variables] for layer in (old, new)]
    if shapes[0] != shapes[1]:
        _refuse(old, f"a copy has variables of the shapes {shapes[1]}, not {shapes[0]}")
    for variable, copy in zip(old.variables, new.variables, strict=True):
        # A copy of the numbers: a compiled training step may reuse the memory of its own.
        copy.assign(keras.ops.copy(variable.value))


def _refuse(layer, reason, error=None):
    raise ValueError(
        "Every layer that stays must be made again by its `get_config` and `from_config`; replace "
        f"it, or mend its class. Received: {layer.name}, a {type(layer).__name__} ({reason})"
    ) from error


def _compile_as(model, rebuilt):
    """Compiles the new model as the old one was, with a fresh optimizer."""
    if not model.compiled:
        return
    try:
        config = keras.saving.deserialize_keras_object(model.get_compile_config())
        rebuilt.compile(**config)
    except Exception as error:
        warnings.warn(
            f"The new model is not compiled, since the old one's `compile` cannot be repeated from "
            f"its config ({error}).",
            stacklevel=4,
        )
