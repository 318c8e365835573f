"""Attention in a window around each pixel (Ramachandran et al., 2019), tile by tile.

A tile of queries attends to the tile of keys that holds all its windows. Which of these keys lie
in a query's window, and inside the image, is a term of the key's row and a term of its column, as
the relative logits are: both fold into the head, and one plain attention serves every tile.
"""

from typing import Literal

from keras import ops

from keras_visattn import kernels
from keras_visattn.ops import checks, chunks, tiles
from keras_visattn.ops.attention import attention, masked_logit
from keras_visattn.ops.containment import contain
from keras_visattn.ops.heads import flatten_pixels, reshape
from keras_visattn.ops.relative_position import fold_logits
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
    tensors = query, key, value, *_tables(embeddings, kernel_size, query)

    def attend_in_tiles(query, key, value, *tables):
        cuts = [
            tiles.cut_windows(query.shape[axis], key.shape[axis], size, rate, padding)
            for axis, size, rate in zip((1, 2), kernel_size, dilation_rate, strict=True)
        ]
        how = None if implementation == "windows" else implementation

        def attend(query, key, value):
            return _attention_in_tiles(query, key, value, tables, cuts, return_scores, how)

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
        return _attention_in_tiles(query, key, value, tables, cuts, return_scores, how)

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


def _attention_in_tiles(query, key, value, tables, cuts, return_scores, implementation):
    placed = [_placed(table, cut) for table, cut in zip(tables, cuts, strict=True)]

    def attend(*tensors):
        return _attention_in_bands(*tensors, cuts, return_scores, implementation)

    if return_scores:
        return attend(query, key, value, *placed)
    return kernels.compiled(attend)(query, key, value, *placed)


def _attention_in_bands(query, key, value, rows_placed, columns_placed, cuts, *how):
    """Cuts the maps into bands of rows, and attends band by band where all are too many at once."""
    batch, height, width, heads, _ = ops.shape(query)
    rows, columns = cuts
    return_scores, _ = how
    count = tiles.count_tiles(height, rows)
    hidden = _hide(tiles.visible(ops.shape(key)[1], count, rows), query.dtype)
    bands = [
        _merge(tiles.query_tiles(query, 1, count, rows)),
        _merge(tiles.key_tiles(key, 1, count, rows)),
        _merge(tiles.key_tiles(value, 1, count, rows)),
        ops.tile(hidden, (batch, 1, 1)),
    ]
    count_columns = tiles.count_tiles(width, columns)
    hidden_columns = _hide(tiles.visible(ops.shape(key)[2], count_columns, columns), query.dtype)
    shared = [hidden_columns, rows_placed, columns_placed]

    def attend(*tensors):
        return _attention_in_band(*tensors, cuts, *how)

    def join(x):
        x = reshape(x, (batch, count * rows.queries, *ops.shape(x)[2:]))
        return x[:, :height]

    if return_scores:
        outputs, scores = attend(*bands, *shared)
        return join(outputs), join(scores)
    places = None if query.shape[2] is None else count_columns * columns.queries
    cost = chunks.cost_of(heads, rows.queries, places, rows.keys, columns.keys)
    return join(chunks.in_chunks(attend, bands, shared, cost))


def _attention_in_band(
    query, key, value, hidden, hidden_columns, rows_placed, columns_placed, cuts, *how
):
    """Attends within bands `(G, rows, W, N, D)`; `hidden` is a term for each row of keys."""
    bands, _, width, heads, size = ops.shape(query)
    rows, columns = cuts
    return_scores, implementation = how
    count = tiles.count_tiles(width, columns)
    query = _heads_first(tiles.query_tiles(query, 2, count, columns))
    key = _heads_first(tiles.key_tiles(key, 2, count, columns))
    value = _heads_first(tiles.key_tiles(value, 2, count, columns))
    row_terms = ops.einsum("gtnijd,iad->gtnija", query[..., : size // 2], rows_placed)
    row_terms = row_terms + hidden[:, None, None, :, None]
    column_terms = ops.einsum("gtnijd,jad->gtnija", query[..., size // 2 :], columns_placed)
    column_terms = column_terms + hidden_columns[None, :, None, None]
    pixels = (bands, count, heads, rows.queries, columns.queries)

    # A head of a tile is an image of its own: nothing is transposed for the products.
    folded = [_merge(_merge(x))[:, None] for x in (query, key, row_terms, column_terms)]
    folded = [*fold_logits(*folded), flatten_pixels(_merge(_merge(value))[:, None])]
    outputs = attention(
        *folded, scale=1.0, return_scores=return_scores, implementation=implementation
    )

    def join(x):
        x = reshape(x, (*pixels, ops.shape(x)[-1]))
        x = ops.transpose(x, (0, 3, 1, 4, 2, 5))
        x = reshape(x, (bands, rows.queries, count * columns.queries, heads, ops.shape(x)[-1]))
        return x[:, :, :width]

    if not return_scores:
        return join(outputs)
    outputs, scores = outputs
    scores = reshape(scores, (-1, rows.queries, columns.queries, rows.keys, columns.keys))
    scores = ops.einsum("tijac,iap->tijpc", scores, ops.cast(rows.window, scores.dtype))
    scores = ops.einsum("tijpc,jcq->tijpq", scores, ops.cast(columns.window, scores.dtype))
    places = rows.window.shape[-1] * columns.window.shape[-1]
    return join(outputs), join(reshape(scores, (*pixels, places)))


def _merge(x):
    """Joins the first two axes."""
    first, second, *rest = ops.shape(x)
    return reshape(x, (first * second, *rest))


def _heads_first(x):
    """Turns tiles `(G, rows, count, columns, N, D)` into `(G, count, N, rows, columns, D)`."""
    return ops.transpose(x, (0, 2, 4, 1, 3, 5))


def _hide(seen, dtype):
    """Zero for the keys that a query sees, the masked logit for the others."""
    return ops.cast(ops.where(seen, 0.0, masked_logit(dtype)), dtype)


def _placed(table, cut):
    """Places an embedding a window's offset (K, D) where queries and keys of a tile meet."""
    return ops.einsum("iap,pd->iad", ops.cast(cut.window, table.dtype), table)


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
