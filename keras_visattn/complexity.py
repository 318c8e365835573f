"""Parameters and multiply-adds of a model, layer by layer."""

import dataclasses
import inspect
import math

import keras

from keras_visattn import layers

PRODUCTS = (
    *("AdditiveAttention", "Attention", "Conv", "ConvTranspose", "DepthwiseConv", "Dot", "Inner"),
    *("DotProductAttention", "Einsum", "Lambda", "Matmul", "SeparableConv", "Tensordot", "Vdot"),
)
FREE_LAYERS = (
    *(keras.layers.BatchNormalization, keras.layers.GroupNormalization),
    *(keras.layers.LayerNormalization, keras.layers.Embedding, keras.layers.PReLU),
    *(layers.CoordinateChannels2D, layers.SinusoidalPositionEncoding),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """Describes one call of one layer.

    Args:
        name: String, name of the layer, after the names of the models that hold it.
        class_name: String, name of its class.
        output_shape: Tuple, or nested tuples, for a batch of one.
        parameters: Integer, trainable parameters that no row above has.
        macs: Integer, multiply-adds, or `None` if they are not counted.
    """

    name: str
    class_name: str
    output_shape: tuple
    parameters: int
    macs: int | None


@dataclasses.dataclass(frozen=True)
class Profile:
    """Holds the rows of a model; printed, it is a table.

    Args:
        rows: List of `Row`, in the order of computation.
        parameters: Integer, trainable parameters of the model.
    """

    rows: list
    parameters: int

    @property
    def macs(self):
        """Integer, multiply-adds of all the rows that are counted."""
        return sum(row.macs for row in self.rows if row.macs is not None)

    def __str__(self):
        missing = sum(row.macs is None for row in self.rows)
        table = [("name", "class", "output shape", "parameters", "multiply-adds")]
        for row in self.rows:
            macs = "not counted" if row.macs is None else f"{row.macs:,}"
            shape, count = str(row.output_shape), f"{row.parameters:,}"
            table.append((row.name, row.class_name, shape, count, macs))
        note = f"{missing} not counted" if missing else ""
        table.append(("total", "", note, f"{self.parameters:,}", f"{self.macs:,}"))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        form = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<<<>>", widths, strict=True))
        return "\n".join(form.format(*cells) for cells in table)


def profile(model, input_shape=None):
    """Counts the parameters and the multiply-adds of a model for one image.

    A multiply-add is one product of a convolution, a projection or an attention. Biases,
    poolings, normalizations, activations, softmaxes and products element by element are free.
    Attention is counted by its formula, with the relative logits of rows and of columns where it
    has them, whatever a kernel computes for it; a mask saves nothing. A layer whose class has no
    rule is named as not counted.

    Args:
        model: Functional or `keras.Sequential` model, built; models inside it are walked too.
        input_shape: Tuple, shape of the input with or without the batch axis, or a list of them
            for several inputs. Defaults to the model's own shape.

    Returns:
        A `Profile`, with `parameters`, `macs` and `rows`.

    Raises:
        ValueError: If the model is neither functional nor sequential or is not built, a size of
            its inputs is unknown, or `input_shape` does not fit the model.

    Example:
        >>> images = keras.Input((8, 8, 3))
        >>> outputs = keras_visattn.layers.LocalSelfAttention2D(8, 3, num_heads=2)(images)
        >>> keras_visattn.complexity.profile(keras.Model(images, outputs)).macs
        18432
    """
    walkable = isinstance(model, keras.Sequential) or hasattr(model, "_run_through_graph")
    if not walkable or not model.built:
        raise ValueError(
            "`model` must be a functional or sequential model that is built. "
            f"Received: model={model!r}"
        )
    walk = _Walk()
    walk.model(model, _inputs(model, input_shape), "")
    return Profile(walk.rows, _count(model.trainable_variables))


def _inputs(model, input_shape):
    """Gives the symbolic inputs of a batch of one."""
    own = [tuple(tensor.shape) for tensor in model.inputs]
    given = own if input_shape is None else input_shape
    shapes = [given] if len(own) == 1 and given is not own else list(given)
    received = f"Received: input_shape={input_shape}, model's inputs={own}"
    pairs = list(zip(shapes, own, strict=False))
    if len(shapes) != len(own) or any(len(a) not in (len(b) - 1, len(b)) for a, b in pairs):
        raise ValueError(
            f"`input_shape` must have the axes of the model's inputs, or lack the batch. {received}"
        )
    sizes = [tuple(shape[len(shape) - len(like) + 1 :]) for shape, like in pairs]
    if any(None in shape for shape in sizes):
        raise ValueError(f"Every size must be known, of the model or `input_shape`. {received}")
    return [
        keras.KerasTensor((1, *shape), dtype=tensor.dtype)
        for shape, tensor in zip(sizes, model.inputs, strict=True)
    ]


class _Walk:
    """Sends symbolic tensors through a model and keeps a row for each call."""

    def __init__(self):
        self.rows = []
        self.seen = set()

    def model(self, model, inputs, prefix):
        if isinstance(model, keras.Sequential):
            (outputs,) = keras.tree.flatten(inputs)
            for layer in model.layers:
                outputs = self.step(layer, prefix)(outputs)
            return outputs
        # Calling the model or its layers would add nodes to them; Keras has no public walk.
        return model._run_through_graph(inputs, lambda layer: self.step(layer, prefix))

    def step(self, layer, prefix):
        def call(*args, **kwargs):
            # In the order of the layer's own signature, however the arguments were given.
            given = list(inspect.signature(layer.call).bind(*args, **kwargs).arguments.values())
            if isinstance(layer, keras.Sequential) or hasattr(layer, "_run_through_graph"):
                return self.model(layer, given[0], f"{prefix}{layer.name}/")
            inputs = _shapes(given)
            _check_input(layer, inputs)
            outputs = layer.compute_output_spec(*args, **kwargs)
            shape = keras.tree.map_structure(lambda x: tuple(x.shape), outputs)
            variables = getattr(layer, "trainable_variables", ())
            variables = [v for v in variables if id(v) not in self.seen]
            self.seen.update(map(id, variables))
            macs = _macs(layer, inputs, _shapes(outputs))
            name, kind = prefix + layer.name, type(layer).__name__
            self.rows.append(Row(name, kind, shape, _count(variables), macs))
            return outputs

        return call


def _shapes(structure):
    """Lists the shapes of all tensors of a structure."""
    tensors = [x for x in keras.tree.flatten(structure) if isinstance(x, keras.KerasTensor)]
    return [tuple(x.shape) for x in tensors]


def _check_input(layer, inputs):
    """Refuses a shape that the layer, as it is built, would refuse."""
    spec = getattr(layer, "input_spec", None)
    axes = spec.axes if isinstance(spec, keras.layers.InputSpec) else None
    for axis, size in (axes or {}).items():
        if size is not None and inputs[0][axis] != size:
            raise ValueError(
                "`input_shape` must fit the weights of every layer. Received: "
                f"layer={layer.name}, axis={axis}, expected size={size}, shape={inputs[0]}"
            )


def _count(variables):
    return sum(math.prod(variable.shape) for variable in variables)


def _macs(layer, inputs, outputs):
    rule = RULES.get(type(layer))
    if rule is not None:
        return rule(layer, inputs, outputs)
    if type(layer) in FREE_LAYERS:
        return 0
    # What is left of Keras has no products if it has no weights, but for a few by name.
    plain = type(layer).__module__.startswith("keras.") and not getattr(layer, "variables", ())
    return 0 if plain and type(layer).__name__ not in PRODUCTS else None


def _applied(positions, *holders):
    """Counts kernels that are applied at a number of positions."""
    return positions * sum(math.prod(holder.kernel.shape) for holder in holders)


def _pixels(layer, shapes):
    return math.prod(layer.image_shape(shapes[0])[1:3])


def _gather_excite(layer, inputs, outputs):
    sizes, macs = layer.image_shape(inputs[0])[1:3], 0
    for gather in layer.gathers:
        sizes = [-(-n // 2) if layer.extent else 1 for n in sizes]
        macs += _applied(math.prod(sizes), gather)
    if not layer.gathers:
        sizes = [-(-n // layer.extent) if layer.extent else 1 for n in sizes]
    if layer.squeeze is not None:
        macs += _applied(math.prod(sizes), layer.squeeze, layer.excite)
    return macs


def _augmented_conv2d(layer, inputs, outputs):
    height, width = layer.image_shape(outputs[0])[1:3]
    macs = 0 if layer.convolution is None else _applied(height * width, layer.convolution)
    height, width = (-(-n // layer.attention_pool) for n in (height, width))
    pixels = height * width
    macs += _applied(pixels, layer.projection, layer.combination)
    macs += pixels**2 * layer.num_heads * (layer.key_dim + layer.value_dim)
    if layer.position_embedding is not None:
        macs += pixels * (height + width) * layer.num_heads * layer.key_dim
    return macs


def _local_self_attention2d(layer, inputs, outputs):
    _, height, width, _, places = layer.compute_scores_shape(inputs[0])
    products = 3 if layer.position == "relative" else 2
    macs = products * height * width * places * layer.filters
    return macs + _applied(_pixels(layer, inputs), layer.projection)


def _local_attention_stem2d(layer, inputs, outputs):
    pixels, size = _pixels(layer, inputs), layer.filters // layer.num_heads
    lengths = zip(layer.image_shape(inputs[0])[1:3], layer.kernel_size, strict=True)
    pairs = math.prod(n // block * block**2 + (n % block) ** 2 for n, block in lengths)
    mixing = layer.num_mixtures * (pixels * layer.filters + math.prod(layer.kernel_size) * size)
    return _applied(pixels, layer.projection) + mixing + 2 * pairs * layer.filters


def _multi_head_attention(layer, inputs, outputs):
    query, value = inputs[:2]
    queries, key_positions = math.prod(query[:-1]), math.prod(value[:-1])
    axes = layer.attention_axes or range(1, len(query) - 1)
    scores = queries * math.prod(value[axis] for axis in axes) * layer.num_heads
    macs = _applied(queries, layer.query_dense, layer.output_dense)
    macs += _applied(key_positions, layer.key_dense, layer.value_dense)
    macs += scores * (layer.key_dim + layer.value_dim)
    if layer.gate_dense is not None:
        macs += _applied(queries, layer.gate_dense)
    if layer.position_embedding is not None:
        macs += queries * (value[1] + value[2]) * layer.num_heads * layer.key_dim
    return macs


def _matrix(layer, inputs, outputs):
    return math.prod(outputs[0]) * math.prod(layer.kernel.shape[:-1])


RULES = {
    **dict.fromkeys((keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D), _matrix),
    keras.layers.Dense: _matrix,
    keras.layers.DepthwiseConv2D: lambda layer, _, outputs: (
        math.prod(outputs[0]) * math.prod(layer.kernel.shape[:-2])
    ),
    layers.AugmentedConv2D: _augmented_conv2d,
    layers.BAM: lambda layer, inputs, _: (
        _applied(1, layer.squeeze, layer.excite)
        + _applied(_pixels(layer, inputs), *layer.convolutions)
    ),
    layers.CBAM: lambda layer, *shapes: sum(
        RULES[type(gate)](gate, *shapes) for gate in layer.gates.values()
    ),
    layers.ChannelAttention: lambda layer, *_: _applied(
        len(layer.pooling), layer.squeeze, layer.excite
    ),
    layers.GALA: lambda layer, inputs, _: (
        _applied(1, layer.squeeze, layer.excite)
        + _applied(_pixels(layer, inputs), layer.shrink, layer.collapse)
    ),
    layers.GatherExcite: _gather_excite,
    layers.LocalAttentionStem2D: _local_attention_stem2d,
    layers.LocalSelfAttention2D: _local_self_attention2d,
    layers.MultiHeadAttention: _multi_head_attention,
    layers.SpatialAttention: lambda layer, inputs, _: _applied(
        _pixels(layer, inputs), layer.convolution
    ),
    layers.SqueezeExcite: lambda layer, *_: _applied(
        1, layer.channel_attention.squeeze, layer.channel_attention.excite
    ),
}
