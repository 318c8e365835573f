"""Parameters and multiply-adds of a model, layer by layer."""

import dataclasses
import inspect
import math
from collections.abc import Sequence
from typing import Any, Literal

import keras

from keras_visattn import multiply_adds
from keras_visattn.ops import checks
from keras_visattn.tables import aligned
from keras_visattn.typing import Shape


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
    output_shape: tuple[Any, ...]
    parameters: int
    macs: int | None


@dataclasses.dataclass(frozen=True)
class Profile:
    """Holds the rows of a model; printed, it is a table.

    `profile.table("flops")` is the table in the unit of papers that count a multiplication and an
    addition as two. `profile.compare(other)` says in one line what this model has more or less
    than another.

    Args:
        name: String, name of the model.
        rows: List of `Row`, in the order of computation.
        parameters: Integer, trainable parameters of the model.

    Attributes:
        macs: Integer, multiply-adds of all the rows that are counted.
        flops: Integer, twice the multiply-adds.
    """

    name: str
    rows: list[Row]
    parameters: int

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows if row.macs is not None)

    @property
    def flops(self) -> int:
        return 2 * self.macs

    def table(self, unit: Literal["macs", "flops"] = "macs") -> str:
        """Writes a line for each row, in multiply-adds (`"macs"`) or in `"flops"`."""
        factor = {"macs": 1, "flops": 2}[checks.choice("unit", unit, ("macs", "flops"))]
        title = "multiply-adds" if unit == "macs" else "FLOPs"
        missing = sum(row.macs is None for row in self.rows)
        table = [("name", "class", "output shape", "parameters", title)]
        for row in self.rows:
            count = "not counted" if row.macs is None else f"{factor * row.macs:,}"
            shape, parameters = str(row.output_shape), f"{row.parameters:,}"
            table.append((row.name, row.class_name, shape, parameters, count))
        note = f"{missing} not counted" if missing else ""
        table.append(("total", "", note, f"{self.parameters:,}", f"{factor * self.macs:,}"))
        return aligned(table, "<<<>>")

    def __str__(self) -> str:
        return self.table()

    def compare(self, other: "Profile") -> str:
        """Compares the totals with those of another `Profile`, in one line."""
        parts = []
        for name, mine, others in (
            ("parameters", self.parameters, other.parameters),
            ("multiply-adds", self.macs, other.macs),
        ):
            change = f" ({mine / others - 1:+.1%})" if others else ""
            parts.append(f"{mine:,} {name}{change}")
        return f"{self.name} against {other.name}: {', '.join(parts)}"


def profile(model: keras.Model, input_shape: Shape | Sequence[Shape] | None = None) -> Profile:
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
        A `Profile`, with `parameters`, `macs`, `flops` and `rows`.

    Raises:
        ValueError: If the model is neither functional nor sequential or is not built, a size of
            its inputs is unknown, or `input_shape` does not fit the model.

    Examples:
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
    return Profile(model.name, walk.rows, _count(model.trainable_variables))


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
            macs = multiply_adds.count(layer, inputs, _shapes(outputs))
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
