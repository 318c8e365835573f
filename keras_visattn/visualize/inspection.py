"""Finds in a model the map, the scores and the layers that are to be looked at."""

import inspect

import keras

from keras_visattn.surgery.graph import candidates, graph_of, is_walkable


def image_size(images):
    """Gives height and width of the first array with four axes, or None."""
    shapes = (x.shape for x in keras.tree.flatten(images))
    shape = next((shape for shape in shapes if len(shape) == 4), None)
    if shape is None:
        return None
    return shape[1:3] if keras.config.image_data_format() == "channels_last" else shape[2:4]


def find_map(model, layer=None):
    """Gives the layer that is meant, and the data format of its map."""
    operations = candidates(model) if graph_of(model) is not None else []
    if layer is None:
        target = _last_map(model, operations)
    elif isinstance(layer, str):
        target = _named(model, operations, layer)
    else:
        target = layer
        if not any(layer is part for part in _everything(model, operations)):
            raise ValueError(f"`layer` must be a part of the model. Received: {layer}")
    order = [operation for operation, *_ in operations]
    before = order[: order.index(target)] if target in order else order
    formats = (getattr(x, "data_format", None) for x in (target, *reversed(before)))
    return target, next(filter(None, formats), keras.config.image_data_format())


def _everything(model, operations):
    parts = {id(x): x for x in (c.layer for c in operations)}
    return list((parts | {id(x): x for x in model._flatten_layers(include_self=False)}).values())


def _named(model, operations, name):
    found = {id(c.layer): c.layer for c in operations if name in (c.path, c.layer.name)}
    if not found:
        found = {id(x): x for x in _everything(model, operations) if x.name == name}
    if len(found) != 1:
        names = [c.path for c in operations] or [x.path for x in _everything(model, operations)]
        raise ValueError(
            "`layer` must be the name of one layer of the model, or its path. "
            f"Received: layer={name!r}, which fits {len(found)} of {', '.join(names)}"
        )
    return next(iter(found.values()))


def _last_map(model, operations):
    if not operations:
        raise ValueError(
            "`layer` must be given for a model that has no graph. "
            f"Received: layer=None, {model.name}, a {type(model).__name__}"
        )
    last = _last_operations(model)
    maps = [
        operation
        for operation, _, _, shape in operations
        if isinstance(shape, tuple)
        and len(shape) == 4
        and not is_walkable(operation)
        and operation not in last
        and shape[1:].count(1) < 2  # one pixel, if two
    ]
    if not maps:
        raise ValueError(
            "The model must have a layer that gives a map of more than one pixel. "
            f"Received: {model.name}, {len(operations)} layers"
        )
    return maps[-1]


def _last_operations(model):
    return {_last_operation(x) for x in keras.tree.flatten(graph_of(model).outputs)}


def _last_operation(output):
    """The operation that gives an output, in the innermost model."""
    operation = output._keras_history.operation
    if not is_walkable(operation):
        return operation
    index = output._keras_history.tensor_index
    return _last_operation(keras.tree.flatten(graph_of(operation).outputs)[index])


def gives_scores(model):
    """Taps for `tapped` that take the softmax or sigmoid off the ends of a model with a graph."""
    if graph_of(model) is None:
        return {}
    taps = {}
    for operation in _last_operations(model):
        if isinstance(operation, keras.layers.Softmax):
            taps[operation] = lambda call, inputs, *args, **kwargs: inputs
        elif getattr(operation, "activation", None) in (
            keras.activations.softmax,
            keras.activations.sigmoid,
        ):
            taps[operation] = _without_activation(operation)
    return taps


def _without_activation(layer):
    linear = object.__new__(type(layer))  # the layer itself is seen by other threads
    vars(linear).update(vars(layer))
    vars(linear).pop("call", None)
    vars(linear)["activation"] = keras.activations.linear
    return lambda call, *args, **kwargs: getattr(linear, call.__name__)(*args, **kwargs)


def output_of(model, outputs, output):
    """Chooses the output by its name or its index."""
    flat = keras.tree.flatten(outputs)
    names = list(getattr(model, "output_names", []))
    if isinstance(outputs, dict):
        names = list(outputs)
        flat = list(outputs.values())
    index = 0 if output is None else output
    if isinstance(index, str) and index in names:
        index = names.index(index)
    if not isinstance(index, int) or not -len(flat) <= index < len(flat):
        raise ValueError(
            "`output` must be the name or the index of an output. "
            f"Received: output={output!r}, names={names}, {len(flat)} outputs"
        )
    scores = flat[index]
    return scores[:, None] if len(scores.shape) == 1 else scores


def attention_layers(model):
    """Lists our attention layers in a model, with their paths, the outermost of each."""
    found, seen = [], set()

    def walk(layer, prefix):
        for part in layer._flatten_layers(recursive=False, include_self=False):
            if id(part) in seen:
                continue
            seen.add(id(part))
            if _is_attention(part):
                found.append((prefix + part.name, part))
            else:
                walk(part, f"{prefix}{part.name}/")

    walk(model, "")
    return found


def _is_attention(layer):
    ours = any(base.__module__.startswith("keras_visattn.layers.") for base in type(layer).__mro__)
    return ours and "return_attention_scores" in inspect.signature(type(layer).call).parameters
