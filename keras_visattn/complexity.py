"""Parameters and multiply-adds of a model, layer by layer."""

import dataclasses
import math

import keras
from keras import layers as keras_layers

from keras_visattn import layers

PRODUCT_OPERATIONS = (
    *("Conv", "ConvTranspose", "DepthwiseConv", "SeparableConv", "DotProductAttention"),
    *("Dot", "Einsum", "Inner", "Matmul", "Outer", "Tensordot", "Vdot"),
)
PRODUCT_LAYERS = (
    *(keras_layers.AdditiveAttention, keras_layers.Attention, keras_layers.Dot),
    *(keras_layers.Lambda, keras_layers.Wrapper),
)
FREE_LAYERS = (
    *(keras_layers.BatchNormalization, keras_layers.GroupNormalization),
    *(keras_layers.LayerNormalization, keras_layers.Normalization, keras_layers.PReLU),
    *(keras_layers.Embedding, layers.CoordinateChannels2D, layers.SinusoidalPositionEncoding),
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
            cells = (row.name, row.class_name, str(row.output_shape), f"{row.parameters:,}", macs)
            table.append(cells)
        note = f"{missing} not counted" if missing else ""
        table.append(("total", "", note, f"{self.parameters:,}", f"{self.macs:,}"))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for cells in table:
            padded = [
                cell.ljust(width) if index < 3 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            lines.append("  ".join(padded).rstrip())
        return "\n".join(lines)


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
    shapes = own
    if input_shape is not None:
        shapes = [input_shape] if len(own) == 1 else input_shape
    if len(shapes) != len(own) or any(
        len(shape) not in (len(like) - 1, len(like))
        for shape, like in zip(shapes, own, strict=True)
    ):
        raise ValueError(
            "`input_shape` must have the axes of the model's inputs, with or without the batch. "
            f"Received: input_shape={input_shape}, model's inputs={own}"
        )
    sizes = [
        tuple(shape[len(shape) - len(like) + 1 :]) for shape, like in zip(shapes, own, strict=True)
    ]
    if any(None in shape for shape in sizes):
        raise ValueError(
            "Every size must be known: `input_shape` must give those that the model leaves open. "
            f"Received: input_shape={input_shape}, model's inputs={own}"
        )
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
        name = prefix + layer.name

        def call(*args, **kwargs):
            if isinstance(layer, keras.Sequential) or hasattr(layer, "_run_through_graph"):
                return self.model(layer, args[0], f"{name}/")
            _check_input(layer, name, args)
            outputs = layer.compute_output_spec(*args, **kwargs)
            variables = getattr(layer, "trainable_variables", ())
            variables = [v for v in variables if id(v) not in self.seen]
            self.seen.update(map(id, variables))
            macs = _macs(layer, _shapes([args, kwargs]), _shapes(outputs))
            shape = keras.tree.map_structure(lambda x: _Shape(x.shape), outputs)
            shape = keras.tree.map_structure(lambda x: x.sizes, shape)
            self.rows.append(Row(name, type(layer).__name__, shape, _count(variables), macs))
            return outputs

        return call


@dataclasses.dataclass(frozen=True)
class _Shape:
    sizes: tuple


def _shapes(structure):
    """Lists the shapes of all tensors of a structure."""
    tensors = [x for x in keras.tree.flatten(structure) if isinstance(x, keras.KerasTensor)]
    return [tuple(x.shape) for x in tensors]


def _check_input(layer, name, args):
    """Refuses a shape that the layer, as it is built, would refuse."""
    spec = getattr(layer, "input_spec", None)
    if not isinstance(spec, keras_layers.InputSpec) or not args:
        return
    shape = tuple(args[0].shape)
    for axis, size in (spec.axes or {}).items():
        if size is not None and shape[axis] != size:
            raise ValueError(
                "`input_shape` must fit the weights of every layer. "
                f"Received: layer={name}, axis={axis}, expected size={size}, shape={shape}"
            )


def _count(variables):
    return sum(math.prod(variable.shape) for variable in variables)


def _macs(layer, inputs, outputs):
    rule = RULES.get(type(layer))
    if rule is not None:
        return rule(layer, inputs, outputs)
    if isinstance(layer, keras.Layer):
        plain = type(layer).__module__.startswith("keras.") and not layer.variables
        free = plain and not isinstance(layer, PRODUCT_LAYERS)
        return 0 if free or type(layer) in FREE_LAYERS else None
    return None if type(layer).__name__ in PRODUCT_OPERATIONS else 0


def _applied(positions, *holders):
    """Counts kernels that are applied at a number of positions."""
    return positions * sum(math.prod(holder.kernel.shape) for holder in holders)


def _pixels(layer, shape):
    return math.prod(layer.image_shape(shape)[1:3])


def _dense(layer, inputs, outputs):
    return math.prod(outputs[0]) * layer.kernel.shape[0]


def _convolution(layer, inputs, outputs):
    return math.prod(outputs[0]) * math.prod(layer.kernel.shape[:-1])


def _transposed_convolution(layer, inputs, outputs):
    return math.prod(inputs[0]) * math.prod(layer.kernel.shape[:-1])


def _depthwise_convolution(layer, inputs, outputs):
    return math.prod(outputs[0]) * math.prod(layer.kernel.shape[:-2])


def _separable_convolution(layer, inputs, outputs):
    positions = math.prod(outputs[0]) // layer.filters
    kernels = (layer.depthwise_kernel, layer.pointwise_kernel)
    return positions * sum(math.prod(kernel.shape) for kernel in kernels)


def _einsum_dense(layer, inputs, outputs):
    left, right = layer.equation.replace(" ", "").split("->")
    letters = left.split(",")[1]
    summed = [n for n, a in zip(layer.kernel.shape, letters, strict=True) if a not in right]
    return math.prod(outputs[0]) * math.prod(summed)


def _channel_attention(layer, inputs, outputs):
    return _applied(len(layer.pooling), layer.squeeze, layer.excite)


def _spatial_attention(layer, inputs, outputs):
    return _applied(_pixels(layer, inputs[0]), layer.convolution)


def _cbam(layer, inputs, outputs):
    return sum(RULES[type(gate)](gate, inputs, outputs) for gate in layer.gates.values())


def _squeeze_excite(layer, inputs, outputs):
    return _channel_attention(layer.channel_attention, inputs, outputs)


def _gather_excite(layer, inputs, outputs):
    height, width = layer.image_shape(inputs[0])[1:3]
    macs = 0
    for gather in layer.gathers:
        height, width = (-(-n // 2) if layer.extent else 1 for n in (height, width))
        macs += _applied(height * width, gather)
    if not layer.gathers:
        extent = layer.extent
        height, width = (-(-n // extent) if extent else 1 for n in (height, width))
    if layer.squeeze is not None:
        macs += _applied(height * width, layer.squeeze, layer.excite)
    return macs


def _bam(layer, inputs, outputs):
    pixels = _pixels(layer, inputs[0])
    return _applied(1, layer.squeeze, layer.excite) + _applied(pixels, *layer.convolutions)


def _gala(layer, inputs, outputs):
    pixels = _pixels(layer, inputs[0])
    return _applied(1, layer.squeeze, layer.excite) + _applied(pixels, layer.shrink, layer.collapse)


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
    return macs + _applied(_pixels(layer, inputs[0]), layer.projection)


def _local_attention_stem2d(layer, inputs, outputs):
    pixels, size = _pixels(layer, inputs[0]), layer.filters // layer.num_heads
    lengths = zip(layer.image_shape(inputs[0])[1:3], layer.kernel_size, strict=True)
    pairs = math.prod(n // block * block**2 + (n % block) ** 2 for n, block in lengths)
    mixing = layer.num_mixtures * (pixels * layer.filters + math.prod(layer.kernel_size) * size)
    return _applied(pixels, layer.projection) + mixing + 2 * pairs * layer.filters


def _multi_head_attention(layer, inputs, outputs):
    query, value = inputs[:2]
    key = inputs[2] if len(inputs) > 2 else value
    axes = layer.attention_axes or range(1, len(query) - 1)
    macs = 0
    for dense, shape in (
        *((layer.query_dense, query), (layer.key_dense, key)),
        *((layer.value_dense, value), (layer.gate_dense, query)),
    ):
        if dense is not None:
            macs += _applied(math.prod(shape[:-1]), dense)
    queries, keys = math.prod(query[:-1]), math.prod(key[axis] for axis in axes)
    macs += queries * keys * layer.num_heads * (layer.key_dim + layer.value_dim)
    if layer.position_embedding is not None:
        macs += queries * (key[1] + key[2]) * layer.num_heads * layer.key_dim
    return macs + _applied(queries, layer.output_dense)


def _relative_position_embedding2d(layer, inputs, outputs):
    return math.prod(inputs[0]) * (inputs[0][1] + inputs[0][2])


RULES = {
    keras_layers.Conv1D: _convolution,
    keras_layers.Conv2D: _convolution,
    keras_layers.Conv3D: _convolution,
    keras_layers.Conv1DTranspose: _transposed_convolution,
    keras_layers.Conv2DTranspose: _transposed_convolution,
    keras_layers.Conv3DTranspose: _transposed_convolution,
    keras_layers.Dense: _dense,
    keras_layers.DepthwiseConv1D: _depthwise_convolution,
    keras_layers.DepthwiseConv2D: _depthwise_convolution,
    keras_layers.EinsumDense: _einsum_dense,
    keras_layers.SeparableConv1D: _separable_convolution,
    keras_layers.SeparableConv2D: _separable_convolution,
    layers.AugmentedConv2D: _augmented_conv2d,
    layers.BAM: _bam,
    layers.CBAM: _cbam,
    layers.ChannelAttention: _channel_attention,
    layers.GALA: _gala,
    layers.GatherExcite: _gather_excite,
    layers.LocalAttentionStem2D: _local_attention_stem2d,
    layers.LocalSelfAttention2D: _local_self_attention2d,
    layers.MultiHeadAttention: _multi_head_attention,
    layers.RelativePositionEmbedding2D: _relative_position_embedding2d,
    layers.SpatialAttention: _spatial_attention,
    layers.SqueezeExcite: _squeeze_excite,
}
