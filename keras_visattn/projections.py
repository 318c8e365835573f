"""The dense projections of a model: quantized with calibration, reported, adapted by low rank."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np

from keras_visattn.layers.kernel_layer import policy_of
from keras_visattn.ops import checks
from keras_visattn.tables import aligned
from keras_visattn.typing import Tensor

DENSE = (keras.layers.Dense, keras.layers.EinsumDense)


@dataclasses.dataclass(frozen=True)
class Row:
    """Describes one layer that has weights of its own.

    Args:
        path: String, the layer's path in the model.
        class_name: String, name of its class.
        mode: String, how it is quantized, or `None` if it was left alone.
        bytes: Integer, the memory of its weights.
    """

    path: str
    class_name: str
    mode: str | None
    bytes: int


@dataclasses.dataclass(frozen=True)
class Report:
    """Holds a row for each layer that has weights of its own; printed, it is a table.

    Args:
        rows: List of `Row`, in the order of the model's layers.

    Attributes:
        quantized: List of `Row`, the layers that are quantized.
        left_alone: List of `Row`, the others.
    """

    rows: list[Row]

    @property
    def quantized(self) -> list[Row]:
        return [row for row in self.rows if row.mode is not None]

    @property
    def left_alone(self) -> list[Row]:
        return [row for row in self.rows if row.mode is None]

    def __str__(self) -> str:
        cells = [("layer", "class", "quantized", "bytes")]
        for row in self.rows:
            cells.append((row.path, row.class_name, row.mode or "left alone", f"{row.bytes:,}"))
        total = sum(row.bytes for row in self.rows)
        share = f"{len(self.quantized)} of {len(self.rows)}"
        cells.append(("total", "", share, f"{total:,}"))
        return aligned(cells, "<<<>")


def report(model: keras.layers.Layer) -> Report:
    """Says which layers of a model `model.quantize` reached, and which it left alone.

    Keras quantizes `Dense`, `EinsumDense` and `Embedding` layers, in this package's layers too,
    whose projections these are. It leaves convolutions, normalizations and position tables alone.

    Args:
        model: `keras.Model` or `keras.layers.Layer`, built.

    Returns:
        A `Report`.

    Examples:
        >>> model = keras_visattn.models.ResNet(26, "local", filters=8, classes=4, num_heads=4)
        >>> model.quantize("int8", filters=lambda layer: isinstance(layer, keras.layers.Dense))
        >>> rows = keras_visattn.projections.report(model).quantized
        >>> {row.class_name for row in rows}, rows[0].mode
        ({'Dense'}, 'int8')
    """
    rows = []
    for layer in model._flatten_layers():
        below = {id(x) for sub in layer._flatten_layers(include_self=False) for x in sub.variables}
        own = [x for x in layer.weights if id(x) not in below and "seed" not in x.path]
        if own:
            size = sum(_bits(x.dtype) * math.prod(x.shape) for x in own) // 8
            mode = policy_of(layer).quantization_mode
            rows.append(Row(layer.path, type(layer).__name__, mode, size))
    return Report(rows)


def _bits(dtype):
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8


def calibrate(
    model: keras.Model,
    inputs: Tensor | list[Tensor],
    mode: Literal["gptq", "awq"] = "gptq",
    match: Callable[[keras.layers.Layer], bool] | None = None,
    batch_size: int = 32,
    **arguments: Any,
) -> list[keras.layers.Layer]:
    """Quantizes the projections of a model by what they see of some inputs, with GPTQ or AWQ.

    `model.quantize("gptq", config)` of Keras wants a tokenizer, texts, and a stack of blocks that
    each take one tensor. Here the whole model is the one block, so that any model will do: images,
    several inputs, maps between the layers. Each projection is calibrated by what reaches it in the
    model that is not quantized yet. Compile the model afterwards. Keras 3.15 cannot read such a
    model again from a file: it leaves the zero points out when it saves.

    Left alone are projections that Keras would spoil: those with a unit (in a group of inputs)
    whose weights all have one sign, as a gate's few channels may, for their zero point does not
    fit into a byte; and those with more channels in a head than come in, whose axes it mistakes.

    Args:
        model: `keras.Model`, built.
        inputs: Array or list of arrays, what the model takes: a few hundred typical examples.
        mode: `"gptq"` or `"awq"`.
        match: Function of a `Dense` or `EinsumDense` layer that says whether it is quantized.
            Defaults to all that Keras does not spoil.
        batch_size: Integer, how many inputs are taken at a time.
        **arguments: Arguments of `keras.quantizers.GPTQConfig` or `AWQConfig`, such as
            `weight_bits` or `group_size`.

    Returns:
        List of the layers that were quantized.

    Raises:
        ValueError: If there are no inputs, no layers that match and can be quantized, a matching
            layer is quantized or has an adapter already, or `activation_order` is asked for.
        NotImplementedError: If this version of Keras has no such mode.

    Reference:
        Frantar et al., 2022, "GPTQ" (https://arxiv.org/abs/2210.17323), and Lin et al., 2023, "AWQ"
        (https://arxiv.org/abs/2306.00978).

    Examples:
        >>> model = keras_visattn.models.ResNet(26, "local", filters=8, classes=4, num_heads=4)
        >>> images = keras.random.normal((4, 33, 33, 3))
        >>> done = keras_visattn.projections.calibrate(model, images, weight_bits=8)
        >>> done[0].quantization_mode
        'gptq'
    """
    checks.choice("mode", mode, ("gptq", "awq"))
    checks.positive_integer("batch_size", batch_size)
    config_class = getattr(keras.quantizers, f"{mode.upper()}Config", None)
    if config_class is None:
        raise NotImplementedError(
            f"This version of Keras has no such mode. Received: mode={mode}, {keras.__version__}"
        )
    length = min((len(x) for x in keras.tree.flatten(inputs)), default=0)
    layers = [layer for layer in model._flatten_layers() if type(layer) in DENSE]
    chosen = [layer for layer in layers if match is None or match(layer)]
    used = [x.path for x in chosen if x.lora_enabled or x.quantization_mode is not None]
    chosen = [x for x in chosen if not used and _rounds(x, arguments.get("group_size", 128))]
    if not length or not chosen or arguments.get("activation_order"):
        raise ValueError(
            "`inputs` and the layers that match must be some, the layers without adapters and not "
            f"quantized, and `activation_order` false. Received: model={model.name}, {length} "
            f"inputs, match={match}, with {len(chosen)} of {len(layers)} layers, adapted or "
            f"quantized: {used}, {arguments}"
        )
    batches = math.ceil(length / batch_size)
    config = config_class(
        dataset=[np.arange(batches)],
        tokenizer=_Batches,  # integers need none
        num_samples=batches,
        sequence_length=1,
        quantization_layer_structure={
            "sequential_blocks": [_Batches(model, inputs, batch_size, chosen)]
        },
        **arguments,
    )
    ids = {id(layer) for layer in chosen}
    model.quantize(mode, config=config, filters=lambda layer: id(layer) in ids)
    config.quantization_layer_structure = None  # the layers keep the configuration
    return chosen


def _rounds(layer, group_size):
    """Whether Keras finds the inputs of a kernel, and a zero point in the range of each group."""
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    bound = 1
    if isinstance(layer, keras.layers.EinsumDense):
        _, letters, output = re.split(",|->", layer.equation)
        bound = sum(letter not in output for letter in letters)
    if kernel.ndim == 3 and (kernel.shape.index(max(kernel.shape)) == 0) != (bound == 1):
        return False
    rows = kernel.reshape(math.prod(kernel.shape[:bound]), -1)
    size = len(rows) if group_size == -1 else group_size
    groups = (rows[start : start + size] for start in range(0, len(rows), size))
    return all(bool(((x.min(0) <= 0) & (x.max(0) >= 0)).all()) for x in groups)


class _Batches:
    """A block as `model.quantize` wants it: called with a number, it calls a model on a batch."""

    def __init__(self, model, inputs, batch_size, layers):
        self.model, self.inputs, self.batch_size, self.layers = model, inputs, batch_size, layers

    def _flatten_layers(self):
        return self.model._flatten_layers()

    def __call__(self, number):
        start = self.batch_size * int(keras.ops.convert_to_numpy(number).item())
        batch = slice(start, start + self.batch_size)
        # Keras 3.15 listens to `call`, which a quantized layer does not go through.
        heard = [x for x in self.layers if {"call", "quantized_call"} & vars(x).keys() == {"call"}]
        for layer in heard:
            layer.quantized_call = layer.call
        try:
            self.model(keras.tree.map_structure(lambda x: x[batch], self.inputs), training=False)
        finally:
            for layer in heard:
                del layer.quantized_call


def enable_lora(
    model: keras.Model, rank: int, match: Callable[[keras.layers.Layer], bool] | None = None
) -> list[keras.layers.Layer]:
    """Adds low-rank adapters to the projections of this package's layers; all else is frozen.

    A projection `x @ W` becomes `x @ W + x @ A @ B` with `A` and `B` of the given rank; `B` starts
    at zero, so nothing changes before training. Only `A` and `B` train. A saved model has them
    added to its kernels. Compile the model afterwards.

    Args:
        model: `keras.Model`, built.
        rank: Integer, rank of the adapters.
        match: Function of a `Dense` or `EinsumDense` layer that says whether it gets an adapter.
            Defaults to those inside layers of this package.

    Returns:
        List of the layers that got one.

    Raises:
        ValueError: If `rank` is not positive, no layer matches, a matching layer has an adapter
            already, or has a constraint.

    Reference:
        Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models"
        (https://arxiv.org/abs/2106.09685).

    Examples:
        >>> model = keras_visattn.models.ResNet(26, "local", filters=8, classes=4, num_heads=4)
        >>> adapted = keras_visattn.projections.enable_lora(model, rank=2)
        >>> len(adapted), len(model.trainable_weights)
        (8, 16)
    """
    checks.positive_integer("rank", rank)
    layers = list(model._flatten_layers())
    ours = [x for x in layers if type(x).__module__.startswith(f"{__package__}.")]
    inside = {id(sub) for layer in ours for sub in layer._flatten_layers(include_self=False)}
    chosen = [
        layer
        for layer in layers
        if isinstance(layer, DENSE) and (id(layer) in inside if match is None else match(layer))
    ]
    if not chosen:
        raise ValueError(
            "`model` must have projections to adapt. "
            f"Received: model={model.name}, match={match}, with {len(layers)} layers"
        )
    for layer in chosen:
        layer.enable_lora(rank)
    adapters = {id(x) for layer in chosen for x in (layer.lora_kernel_a, layer.lora_kernel_b)}
    for variable in model.trainable_variables:
        variable.trainable = id(variable) in adapters
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False  # its averages rest, too
    return chosen
