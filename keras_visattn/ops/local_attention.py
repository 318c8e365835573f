"""Attention in a window around each pixel (Ramachandran et al., 2019), tile by tile.

A tile of queries attends to the tile of keys that holds all its windows. Which of these keys lie
in a query's window, and inside the image, is a term of the key's row and a term of its column, as
the relative logits are: both fold into the head, and one plain attention serves every tile.
"""

from keras import ops

from keras_visattn.ops import checks, tiles
from keras_visattn.ops.attention import attention, masked_logit
from keras_visattn.ops.relative_position import column_logits, fold_logits, row_logits
from keras_visattn.ops.windows import output_length, window_spans


def local_attention_2d(
    query,
    key,
    value,
    row_embeddings=None,
    column_embeddings=None,
    kernel_size=7,
    dilation_rate=1,
    padding="same",
    return_scores=False,
    implementation=None,
):
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
        implementation: As in `ops.attention`.

    Returns:
        Tensor `(B, H', W', N, E)`, and with `return_scores=True` the scores
        `(B, H', W', N, kernel height * kernel width)`, zero for keys outside the image.

    Raises:
        ValueError: If the shapes do not fit, or a `"valid"` window is larger than the image.

    Reference:
        Ramachandran et al., 2019, "Stand-Alone Self-Attention in Vision Models", section 3
        (https://arxiv.org/abs/1906.05909).

    Example:
        >>> x = keras.random.normal((2, 9, 6, 4, 8))
        >>> keras.ops.shape(keras_visattn.ops.local_attention_2d(x, x, x, kernel_size=3))
        (2, 9, 6, 4, 8)
    """
    kernel_size = checks.odd_pair("kernel_size", kernel_size)
    dilation_rate = checks.pair("dilation_rate", dilation_rate)
    checks.choice("padding", padding, ("same", "valid"))
    _check_maps(query, key, value)
    embeddings = (row_embeddings, column_embeddings)
    _check_embeddings(embeddings, kernel_size, query.shape[-1])
    if padding == "valid":
        query = _queries_with_whole_windows(query, kernel_size, dilation_rate)
    cuts = [
        tiles.cut_windows(query.shape[axis], key.shape[axis], size, rate, padding)
        for axis, size, rate in zip((1, 2), kernel_size, dilation_rate, strict=True)
    ]
    return _attention_in_tiles(query, key, value, cuts, embeddings, return_scores, implementation)


def block_attention_2d(query, key, value, block_size=4, return_scores=False, implementation=None):
    """Attends from each pixel to all pixels of its block; blocks do not overlap.

    `softmax(q . k) @ v` over the block, without a scale. The last blocks are smaller where the
    block size does not divide the image.

    Args:
        query: Tensor `(B, H, W, N, D)`.
        key: Tensor `(B, H, W, N, D)`.
        value: Tensor `(B, H, W, N, E)`.
        block_size: Integer or pair, height and width of a block.
        return_scores: Boolean, whether to return the scores too.
        implementation: As in `ops.attention`.

    Returns:
        Tensor `(B, H, W, N, E)`, and with `return_scores=True` the scores
        `(B, H, W, N, block height * block width)`, zero for keys outside the image.

    Raises:
        ValueError: If the shapes do not fit.

    Reference:
        Ramachandran et al., 2019, "Stand-Alone Self-Attention in Vision Models", section 3.3
        (https://arxiv.org/abs/1906.05909).

    Example:
        >>> x = keras.random.normal((2, 9, 6, 4, 8))
        >>> keras.ops.shape(keras_visattn.ops.block_attention_2d(x, x, x, block_size=3))
        (2, 9, 6, 4, 8)
    """
    block_size = checks.pair("block_size", block_size)
    _check_maps(query, key, value)
    cuts = [tiles.cut_blocks(size) for size in block_size]
    return _attention_in_tiles(query, key, value, cuts, (None, None), return_scores, implementation)


def _attention_in_tiles(query, key, value, cuts, embeddings, return_scores, implementation):
    batch, height, width, heads, size = ops.shape(query)
    counts = [tiles.count_tiles(height, cuts[0]), tiles.count_tiles(width, cuts[1])]
    total = batch * counts[0] * counts[1]
    rows, columns = cuts
    seen = [
        tiles.visible(length, count, cut)
        for length, count, cut in zip(ops.shape(key)[1:3], counts, cuts, strict=True)
    ]
    query = tiles.query_tiles(query, cuts, counts)
    key = tiles.key_tiles(key, cuts, counts)
    value = tiles.key_tiles(value, cuts, counts)

    row_terms = _hide(seen[0][None, :, None], (batch, *counts, rows.queries, rows.keys), query)
    row_terms = ops.reshape(row_terms, (total, 1, rows.queries, 1, rows.keys))
    column_terms = _hide(
        seen[1][None, None], (batch, *counts, columns.queries, columns.keys), query
    )
    column_terms = ops.reshape(column_terms, (total, 1, 1, columns.queries, columns.keys))
    if embeddings[0] is not None:
        placed = _placed(embeddings[0], rows)
        row_terms = row_terms + row_logits(query[..., : size // 2], placed)
    if embeddings[1] is not None:
        placed = _placed(embeddings[1], columns)
        column_terms = column_terms + column_logits(query[..., size // 2 :], placed)
    outputs = attention(
        *fold_logits(query, key, row_terms, column_terms),
        ops.reshape(value, (total, rows.keys * columns.keys, heads, value.shape[-1])),
        scale=1.0,
        return_scores=return_scores,
        implementation=implementation,
    )
    outputs, scores = outputs if return_scores else (outputs, None)
    in_tile = (total, rows.queries, columns.queries, heads)
    outputs = ops.reshape(outputs, (*in_tile, value.shape[-1]))
    outputs = tiles.from_tiles(outputs, counts, height, width)
    if scores is None:
        return outputs
    scores = ops.reshape(
        scores, (total, heads, rows.queries, columns.queries, rows.keys, columns.keys)
    )
    scores = ops.einsum("tnijac,iap->tnijpc", scores, ops.cast(rows.window, scores.dtype))
    scores = ops.einsum("tnijpc,jcq->tijnpq", scores, ops.cast(columns.window, scores.dtype))
    places = rows.window.shape[-1] * columns.window.shape[-1]
    scores = ops.reshape(scores, (*in_tile, places))
    return outputs, tiles.from_tiles(scores, counts, height, width)


def _hide(seen, shape, like):
    """Zero for the keys that a query sees, the masked logit for the others, at a wider shape."""
    terms = ops.where(seen, 0.0, masked_logit(like.dtype))
    return ops.broadcast_to(ops.cast(terms, like.dtype), shape)


def _placed(embeddings, cut):
    """Places an embedding a window's offset (K, D) where queries and keys of a tile meet."""
    return ops.einsum("iap,pd->iad", ops.cast(cut.window, embeddings.dtype), embeddings)


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
