"""What the attention layers of a model weigh, as pictures."""

import functools
import numbers

import keras
import numpy as np
from keras import ops, tree

from keras_visattn import kernels, layers
from keras_visattn.layers.image_layer import ImageGate
from keras_visattn.ops import checks
from keras_visattn.ops.windows import keys_before
from keras_visattn.typing import Tensors, Verbose
from keras_visattn.visualize.inspection import attention_layers, image_size
from keras_visattn.visualize.tapping import in_batches, tapped


def attention_maps(
    model: keras.Model,
    images: Tensors,
    query: tuple[int, int] | None = None,
    batch_size: int = 8,
    verbose: Verbose = "auto",
) -> dict[str, dict[str, np.ndarray]]:
    """Gives the attention of every attention layer of this package in a model.

    The model stays as it is, and runs in inference mode.

    Args:
        model: A Keras model of any kind that holds such layers, at any depth.
        images: Array, or the structure of arrays that the model takes.
        query: Pair of integers, row and column of a pixel of the images. Attention from pixel to
            pixel is shown for it, or for the one of a smaller map that holds it. Defaults to the
            middle.
        batch_size: Integer, images at a time: layers that attend to the whole map make the
            scores of all pairs of pixels, on the way.
        verbose: 1 shows the progress, 0 does not, `"auto"` does if there are several batches.

    Returns:
        A dictionary with the path of each layer, and under it a dictionary of arrays:

        - `"channel"`, gates `(batch, channels)`; `"spatial"`, gates `(batch, height, width)`;
          `"gate"`, those of layers with a gate for each pixel and channel
          `(batch, height, width, channels)`;
        - `"keys"`, for maps: where the query looks, `(batch, heads, height, width)`;
        - `"scores"`, for sequences: `(batch, heads, queries, keys)`; of a decoder block `"self"`
          and `"cross"`;
        - `"rows"` and `"columns"`, the relative-position tables `(offsets, size)`, from the most
          negative offset to the most positive one.

    Raises:
        ValueError: If the model has no such layer, or `query` is not a pixel of the images.

    Examples:
        >>> model = keras_visattn.models.ResNet(26, "local", filters=16, classes=10)
        >>> images = keras.random.uniform((2, 64, 64, 3))
        >>> maps = keras_visattn.visualize.attention_maps(model, images, query=(20, 30))
        >>> maps["stage1_block1_2_local"]["keys"].shape
        (2, 8, 16, 16)
    """
    checks.positive_integer("batch_size", batch_size)
    found = attention_layers(model)
    if not found:
        raise ValueError(
            "The model must hold an attention layer of keras_visattn. "
            f"Received: {model.name}, {len(model.layers)} layers"
        )
    images = tree.map_structure(ops.convert_to_numpy, images)
    query = _relative_query(query, images)

    def run(images):
        calls = [[] for _ in found]  # lists keep their order through every backend

        def listen(layer, heard):
            def tap(call, *args, return_attention_scores=False, **kwargs):
                answers = call(*args, return_attention_scores=True, **kwargs)
                heard.append(pictures(layer, answers[1], args[0].shape, query))
                if return_attention_scores:
                    return answers
                return answers[0] if len(answers) == 2 else (answers[0], *answers[2:])

            return tap

        taps = {layer: listen(layer, heard) for (_, layer), heard in zip(found, calls, strict=True)}
        with tapped(taps):
            model(images, training=False)
        return calls

    calls = in_batches(kernels.inference(run, model.variables), images, batch_size, verbose)
    maps = {}
    for (path, layer), heard in zip(found, calls, strict=True):
        first, *more = heard or [{}]  # it may take no part in the model
        maps[path] = first | tables(layer)
        maps |= {f"{path} ({number})": again for number, again in enumerate(more, 2)}  # shared
    return maps


def _relative_query(query, images):
    """The pixel as shares of the image's height and width."""
    if query is None:
        return 0.5, 0.5
    sizes = image_size(images) or ()
    pair = tuple(query) if isinstance(query, (tuple, list)) else ()
    if (
        [len(sizes), len(pair)] != [2, 2]
        or not all(isinstance(place, numbers.Integral) for place in pair)
        or not all(0 <= place < size for place, size in zip(pair, sizes, strict=True))
    ):
        raise ValueError(
            "`query` must be the row and the column of a pixel of the images. "
            f"Received: query={query}, images={[x.shape for x in tree.flatten(images)]}"
        )
    return tuple((place + 0.5) / size for place, size in zip(pair, sizes, strict=True))


def _pixel(query, height, width):
    return int(query[0] * height), int(query[1] * width)


@functools.singledispatch
def pictures(layer, scores, input_shape, query):
    """Turns a layer's attention scores into what `attention_maps` gives under its path."""
    if isinstance(scores, dict):  # a decoder block's
        return scores
    if len(scores.shape) == 6:  # from map to map
        row, column = _pixel(query, *scores.shape[2:4])
        return {"keys": scores[:, :, row, column]}
    return {"scores": scores}


@pictures.register
def _(layer: ImageGate, scores, input_shape, query):
    gate = layer.to_channels_last(scores)
    return {"channel": gate[:, 0, 0]} if gate.shape[1:3] == (1, 1) else {"gate": gate}


@pictures.register
def _(layer: layers.SpatialAttention, scores, input_shape, query):
    return {"spatial": layer.to_channels_last(scores)[..., 0]}


@pictures.register
def _(layer: layers.CBAM, scores, input_shape, query):
    return {
        name: pictures(part, scores[name], input_shape, query)[name]
        for name, part in layer.gates.items()
    }


@pictures.register
def _(layer: layers.AugmentedConv2D, scores, input_shape, query):
    _, height, width, _ = layer.image_shape(input_shape)
    height, width = layer.attention_size(height, width)
    row, column = _pixel(query, height, width)
    keys = scores[:, :, row * width + column]
    return {"keys": ops.reshape(keys, (-1, layer.num_heads, height, width))}


@pictures.register
def _(layer: layers.LocalSelfAttention2D, scores, input_shape, query):
    _, height, width, _ = layer.image_shape(input_shape)
    row, column = _pixel(query, *scores.shape[1:3])
    window = layer.kernel_size, layer.dilation_rate
    rows, columns = (
        pixel - before + rate * np.arange(size)
        for pixel, before, size, rate in zip(
            (row, column), keys_before(*window, layer.padding), *window, strict=True
        )
    )
    return {"keys": _placed(scores[:, row, column], rows, columns, height, width)}


@pictures.register
def _(layer: layers.LocalAttentionStem2D, scores, input_shape, query):
    _, height, width, _ = layer.image_shape(input_shape)
    row, column = _pixel(query, height, width)
    rows, columns = (
        pixel // size * size + np.arange(size)
        for pixel, size in zip((row, column), layer.kernel_size, strict=True)
    )
    return {"keys": _placed(scores[:, row, column], rows, columns, height, width)}


def _placed(window, rows, columns, height, width):
    """Puts the scores `(B, N, K)` of a window at their rows and columns on an empty map."""
    places = np.full((height, width), window.shape[-1])  # where a zero stands
    for index, row in enumerate(rows):
        for other, column in enumerate(columns):
            if 0 <= row < height and 0 <= column < width:
                places[row, column] = index * len(columns) + other
    window = ops.pad(window, [(0, 0), (0, 0), (0, 1)])
    keys = ops.take(window, places.reshape(-1), axis=-1)
    return ops.reshape(keys, (-1, window.shape[1], height, width))


def tables(layer):
    """Gives the relative-position tables that a layer holds."""
    position = getattr(layer, "position_embedding", None)
    holder, names = (layer, ("row_embeddings", "column_embeddings"))
    if position is not None:
        holder, names = position, ("row_table", "column_table")
    found = (getattr(holder, name, None) for name in names)
    return {
        name: ops.convert_to_numpy(table)
        for name, table in zip(("rows", "columns"), found, strict=True)
        if table is not None
    }
