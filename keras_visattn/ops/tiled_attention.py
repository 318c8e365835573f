"""Attention of each tile of a map's queries to a tile of keys that holds all their windows."""

from keras import ops

from keras_visattn import kernels
from keras_visattn.ops import chunks, tiles
from keras_visattn.ops.attention import attention, masked_logit
from keras_visattn.ops.heads import flatten_pixels, reshape
from keras_visattn.ops.relative_position import fold_logits


def attention_in_tiles(query, key, value, tables, cuts, return_scores, implementation):
    """Attends from the queries of each tile to those of its keys that are in their windows.

    Args:
        query: Tensor `(B, H, W, N, D)`.
        key: Tensor `(B, H, W, N, D)`.
        value: Tensor `(B, H, W, N, E)`.
        tables: The embeddings of the window's row offsets `(K, D / 2)`, and of its columns.
        cuts: `tiles.Cut` of the rows, and of the columns.
        return_scores: Boolean, whether to return the scores too.
        implementation: As in `ops.attention`.

    Returns:
        Tensor `(B, H, W, N, E)`, and with `return_scores=True` the scores of the window's places.
    """
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
