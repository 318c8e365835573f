"""What a model is made of: its layers, the calls of its graph, where its blocks and stages end."""

from typing import NamedTuple

import keras

from keras_visattn.typing import Shape


class Candidate(NamedTuple):
    """A layer that surgery can reach, with the shapes of its first call in the model.

    Args:
        layer: `keras.layers.Layer`, or an operation that is no layer.
        path: String, its name after the names of the models that hold it.
        input_shape: Tuple, or a list of tuples if it has several inputs.
        output_shape: Tuple, or a list of tuples if it has several outputs.
    """

    layer: keras.Operation
    path: str
    input_shape: Shape | list[Shape]
    output_shape: Shape | list[Shape]


def graph_of(model):
    """Gives the functional model that a model is or holds, or None."""
    if isinstance(model, keras.Sequential):
        model = model._functional
    return model if hasattr(model, "_run_through_graph") else None


def is_walkable(layer):
    return isinstance(layer, keras.Model) and graph_of(layer) is not None


def backbone_of(model):
    """Gives the backbone of a model that is made anew from its config with another backbone."""
    backbone = getattr(model, "backbone", None)
    held = isinstance(backbone, keras.Model) and "backbone" in model.get_config()
    return backbone if held else None


def calls(model):
    """Lists the calls of a functional model's operations, in the order of computation."""
    by_depth = model._nodes_by_depth  # Keras has no public walk
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return [node for node in nodes if not node.is_input]


def candidates(model, prefix=""):
    """Lists the layers and operations of a model and of the models in it, each once.

    Args:
        model: Functional or `keras.Sequential` model, built.
        prefix: String, put before every path.

    Returns:
        A list of `Candidate`, in the order of computation. A model in the model stands behind
        what it holds. Of a model with a backbone, such as a classifier of KerasHub, what the
        backbone holds.

    Raises:
        ValueError: If the model has no graph.
    """
    backbone = backbone_of(model)
    if backbone is not None:
        return candidates(backbone, f"{prefix}{backbone.name}/")
    graph = graph_of(model)
    if graph is None:
        raise ValueError(
            "`model` must be a functional model, or a `keras.Sequential` that is built. "
            f"Received: {model.name}, a {type(model).__name__}"
        )
    found, seen = [], set()
    for call in calls(graph):
        layer = call.operation
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if is_walkable(layer):
            found += candidates(layer, f"{prefix}{layer.name}/")
        shapes = (_shapes(tensors) for tensors in (call.input_tensors, call.output_tensors))
        found.append(Candidate(layer, prefix + layer.name, *shapes))
    return found


def _shapes(tensors):
    shapes = [tuple(tensor.shape) for tensor in tensors]
    return shapes[0] if len(shapes) == 1 else shapes


def hidden_convolutions(model):
    """Lists the paths of layers that are no models, but hold convolutions that none can reach."""
    return [
        path
        for layer, path, *_ in candidates(model)
        if isinstance(layer, keras.layers.Layer)
        and not is_walkable(layer)
        and not type(layer).__module__.startswith("keras_visattn.")
        and any(
            isinstance(part, keras.layers.Conv2D)
            for part in layer._flatten_layers(include_self=False)
        )
    ]


def residual_branches(model):
    """Lists the operations that give an addition of two maps its deeper one, the branch.

    The other one, the shortcut, is the block's input, or has passed through fewer operations.
    Models inside the model are searched too.
    """
    inner = [c.layer for c in candidates(model) if is_walkable(c.layer)]
    branches = []
    for graph in map(graph_of, (*inner, backbone_of(model) or model)):
        depths = {}
        for call in calls(graph):
            depth = 1 + max((depths.get(id(x), 0) for x in call.input_tensors), default=0)
            depths |= {id(x): depth for x in call.output_tensors}
            if _is_addition(call):
                branch = max(call.input_tensors, key=lambda x: depths.get(id(x), 0))
                branches.append(branch._keras_history.operation)
    return list(dict.fromkeys(branches))


def stage_ends(model):
    """Lists the operations that give the last map before each that makes maps smaller.

    Such a map is the only way from the input to the output: it lies in no branch. What is padded,
    what comes before the first convolution, and, where there are blocks with additions, what
    comes before the first of them, is none. A model that has its convolutions in models inside
    it has its stages there.
    """
    graph = graph_of(backbone_of(model) or model)
    order = calls(graph)
    inner = [call.operation for call in order if is_walkable(call.operation)]
    if inner and not any(_convolves(c.operation) for c in order if c.operation not in inner):
        return [end for part in inner for end in stage_ends(part)]
    last_use = {}
    for place, call in enumerate(order):
        last_use |= {id(x): place for x in call.input_tensors}
    first = max(
        next((place for place, call in enumerate(order) if _convolves(call.operation)), len(order)),
        next((place for place, call in enumerate(order) if _is_addition(call)), 0),
    )
    ends, end = [], None
    crossing = max(last_use.get(id(x), 0) for x in graph.inputs)  # the last use of what there is
    for place, call in enumerate(order):
        if _reduces(call.operation) and end is not None:
            ends.append(end)
        x = call.output_tensors[0]
        padded = isinstance(call.operation, keras.layers.ZeroPadding2D)
        if crossing <= place and place >= first and len(x.shape) == 4 and not padded:
            end = call.operation
        crossing = max(crossing, last_use.get(id(x), 0))
    return list(dict.fromkeys([*ends, end] if end is not None else ends))


def _is_addition(call):
    shapes = [tuple(x.shape) for x in call.input_tensors]
    same = len(shapes) > 1 and len(set(shapes)) == 1 and len(shapes[0]) == 4
    return same and type(call.operation).__name__ == "Add"  # the layer, or the operation of `+`


def _convolves(operation):
    return any(len(weight.shape) == 4 for weight in getattr(operation, "weights", ()))


def _reduces(operation):
    if is_walkable(operation):
        return any(_reduces(candidate.layer) for candidate in candidates(operation))
    strides = getattr(operation, "strides", 1)
    return max(strides if isinstance(strides, (tuple, list)) else (strides,)) > 1
