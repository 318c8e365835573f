"""Attention in a window around each pixel (Ramachandran et al., 2019), tile by tile.

A tile of queries attends to the tile of keys that holds all its windows. Which of these keys lie
in a query's window, and inside the image, is a term of the key's row and a term of its column, as
the relative logits are: both fold into the head, and one plain attention serves every tile.
"""

from typing import Literal

from keras import ops

from keras_visattn import kernels
from keras_visattn.ops import checks, tiles
from keras_visattn.ops.containment import contain
from keras_visattn.ops.tiled_attention import attention_in_tiles
from keras_visattn.ops.windows import keys_before, output_length, window_spans
from keras_visattn.typing import IntOrPair, Outputs, Padding, Tensor


def local_attention_2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_embeddings: Tensor | None = None,
    column_embeddings: Tensor | None = None,
    kernel_size: IntOrPair = 7,
    dilation_rate: IntOrPair = 1,
    padding: Padding = "same",
    return_scores: bool = False,
    implementation: Literal["windows", "core", "fused", "flash"] | None = None,
) -> Outputs:
    """Attends from each pixel to the window around it; what is outside the image is no key.

    `softmax(q . k + q . r) @ v` over the window, without a scale. `r` is the embedding of the
    key's row offset beside that of its column offset: the first half of the query's head
    multiplies the row's, the second half the column's.

    Args:
        query: Tensor `(B, H, W, N, D)`.
        key: Tensor `(B, H, W, N, D)`.
        value: Tensor `(B, H, W, N, E)`.
        row_embeddings: Tensor `(kernel height, D / 2)` or `None`, a row for each offset.
        column_embeddings: Tensor `(kernel width, D / 2)` or `None`.
        kernel_size: Odd integer or pair, height and width of the window.
        dilation_rate: Integer or pair, distance of neighbouring keys.
        padding: `"same"` gives an output for each pixel, `"valid"` for those whose window lies
            inside the image.
        return_scores: Boolean, whether to return the scores too.
        implementation: `"windows"`, this package's kernel for the backend, which refuses what it
            cannot do; a name of `ops.attention` cuts the map into tiles and attends with that.
            `None` takes the kernel where it serves, and tiles where not.

    Returns:
        Tensor `(B, H', W', N, E)`, and with `return_scores=True` the scores
        `(B, H', W', N, kernel height * kernel width)`, zero for keys outside the image.

    Raises:
        ValueError: If the shapes do not fit, or a `"valid"` window is larger than the image.
        NotImplementedError: If `"windows"` is asked for what the kernel cannot do.

    Reference:
        Ramachandran et al., 2019, "Stand-Alone Self-Attention in Vision Models", section 3
        (https://arxiv.org/abs/1906.05909).

    Examples:
        >>> x = keras.random.normal((2, 9, 6, 4, 8))
        >>> keras.ops.shape(keras_visattn.ops.local_attention_2d(x, x, x, kernel_size=3))
        (2, 9, 6, 4, 8)
    """
    kernel_size = checks.odd_window("kernel_size", kernel_size)
    dilation_rate = checks.window("dilation_rate", dilation_rate)
    checks.choice("padding", padding, ("same", "valid"))
    _check_maps(query, key, value)
    embeddings = (row_embeddings, column_embeddings)
    _check_embeddings(embeddings, kernel_size, query.shape[-1])
    if padding == "valid":
        query = _queries_with_whole_windows(query, kernel_size, dilation_rate)
    row_table, column_table = _tables(embeddings, kernel_size, query)
    tensors = query, key, value, row_table, column_table

    def attend_in_tiles(query, key, value, *tables):
        cuts = [
            tiles.cut_windows(query.shape[axis], key.shape[axis], size, rate, padding)
            for axis, size, rate in zip((1, 2), kernel_size, dilation_rate, strict=True)
        ]
        how = None if implementation == "windows" else implementation

        def attend(query, key, value):
            return attention_in_tiles(query, key, value, tables, cuts, return_scores, how)

        return contain(attend, query, key, value, kernel_size, dilation_rate, padding)

    if implementation in (None, "windows"):
        window = kernel_size, dilation_rate, keys_before(kernel_size, dilation_rate, padding)
        try:
            if return_scores:
                raise NotImplementedError("The kernel of windows gives no scores.")
            return kernels.window_attention(*tensors, window, attend_in_tiles)
        except NotImplementedError:
            if implementation is not None:
                raise
    return attend_in_tiles(*tensors)


def block_attention_2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_size: IntOrPair = 4,
    return_scores: bool = False,
    implementation: Literal["blocks", "core", "fused", "flash"] | None = None,
) -> Outputs:
    """Attends from each pixel to all pixels of its block; blocks do not overlap.

    `softmax(q . k) @ v` over the block, without a scale. The last blocks are smaller where the
    block size does not divide the image.

    Args:
        query: Tensor `(B, H, W, N, D)`.
        key: Tensor `(B, H, W, N, D)`.
        value: Tensor `(B, H, W, N, E)`.
        block_size: Integer or pair, height and width of a block.
        return_scores: Boolean, whether to return the scores too.
        implementation: `"blocks"`, this package's kernel for the backend, which refuses what it
            cannot do; a name of `ops.attention` attends with that. `None` takes the kernel where
            it serves.

    Returns:
        Tensor `(B, H, W, N, E)`, and with `return_scores=True` the scores
        `(B, H, W, N, block height * block width)`, zero for keys outside the image.

    Raises:
        ValueError: If the shapes do not fit.
        NotImplementedError: If `"blocks"` is asked for what the kernel cannot do.

    Reference:
        Ramachandran et al., 2019, "Stand-Alone Self-Attention in Vision Models", section 3.3
        (https://arxiv.org/abs/1906.05909).

    Examples:
        >>> x = keras.random.normal((2, 9, 6, 4, 8))
        >>> keras.ops.shape(keras_visattn.ops.block_attention_2d(x, x, x, block_size=3))
        (2, 9, 6, 4, 8)
    """
    block_size = checks.window("block_size", block_size)
    _check_maps(query, key, value)

    def attend_in_tiles(query, key, value):
        cuts = [tiles.cut_blocks(size) for size in block_size]
        tables = _tables((None, None), block_size, query)
        how = None if implementation == "blocks" else implementation
        return attention_in_tiles(query, key, value, tables, cuts, return_scores, how)

    if implementation in (None, "blocks"):
        try:
            if return_scores:
                raise NotImplementedError("The kernel of blocks gives no scores.")
            return kernels.block_attention(query, key, value, block_size, attend_in_tiles)
        except NotImplementedError:
            if implementation is not None:
                raise
    return attend_in_tiles(query, key, value)


def _tables(embeddings, lengths, query):
    """The embeddings of row and of column offsets, zeros where there are none."""
    half = query.shape[-1] // 2
    return [
        ops.zeros((length, size), query.dtype) if table is None else ops.cast(table, query.dtype)
        for table, length, size in zip(
            embeddings, lengths, (half, query.shape[-1] - half), strict=True
        )
    ]


def _queries_with_whole_windows(query, kernel_size, dilation_rate):
    spans = window_spans(kernel_size, dilation_rate)
    for length, span in zip(query.shape[1:3], spans, strict=True):
        output_length(length, span, 1, "valid")
    height, width = ops.shape(query)[1:3]
    top, left = spans[0] // 2, spans[1] // 2
    return query[:, top : height - top, left : width - left]


def _check_maps(query, key, value):
    for name, x in (("query", query), ("key", key), ("value", value)):
        if len(x.shape) != 5:
            raise ValueError(
                f"`{name}` must have the axes (batch, height, width, heads, head size). "
                f"Received: {name}={tuple(x.shape)}"
            )
    checks.same_axes("query", query.shape, "key", key.shape, (0, 1, 2, 3, 4))
    checks.same_axes("key", key.shape, "value", value.shape, (0, 1, 2, 3))


def _check_embeddings(embeddings, kernel_size, head_size):
    for name, table, size in zip(
        ("row_embeddings", "column_embeddings"), embeddings, kernel_size, strict=True
    ):
        if table is not None and (head_size % 2 or tuple(table.shape) != (size, head_size // 2)):
            raise ValueError(
                f"`{name}` must have the shape (window's length, head size / 2), and the head "
                f"size must be even. Received: {name}={tuple(table.shape)}, "
                f"kernel_size={kernel_size}, head size={head_size}"
            )
