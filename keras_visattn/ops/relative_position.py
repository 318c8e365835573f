"""Relative positions on a map: tables by offset, logits by row and by column (Bello et al., 2019).

A relative logit is a term of the key's row and a term of the key's column. Both fold into the
head: the terms are appended to the query and the one-hot row and column to the key, and the plain
product of queries and keys then holds the relative logits too. No tensor of (H W)^2 is made here.
"""

from keras import ops

from keras_visattn.ops import checks
from keras_visattn.ops.heads import flatten_pixels
from keras_visattn.ops.interpolation import sample_linear
from keras_visattn.ops.windows import known_size
from keras_visattn.typing import Extrapolation, Tensor


def resize_table(
    table: Tensor, size: int | Tensor, extrapolation: Extrapolation = "interpolate"
) -> Tensor:
    """Fits a table of offsets to an axis of another length; offset 0 stays in the centre.

    Args:
        table: Tensor `(2 * L - 1, D)`, a row for each offset from `1 - L` to `L - 1`.
        size: Integer or scalar tensor, the length of the axis.
        extrapolation: What an axis longer than `L` gets: `"interpolate"` stretches the table
            linearly, `"clip"` gives offsets beyond it the outermost row. A shorter axis gets the
            middle of the table.

    Returns:
        Tensor `(2 * size - 1, D)`.

    Raises:
        ValueError: If the table has an even number of rows, or `extrapolation` is unknown.
    """
    checks.choice("extrapolation", extrapolation, ("interpolate", "clip"))
    rows = table.shape[0]
    if len(table.shape) != 2 or rows % 2 == 0:
        raise ValueError(
            "`table` must have the shape (2 * length - 1, head size). "
            f"Received: table={tuple(table.shape)}"
        )
    known = known_size(size)
    if known is not None and rows == 2 * known - 1:
        return table
    reach = (rows - 1) // 2
    offsets = ops.arange(0, 2 * size - 1, dtype="int32") - (size - 1)
    if extrapolation == "clip" or (known is not None and known - 1 <= reach):
        return ops.take(table, ops.clip(offsets, -reach, reach) + reach, axis=0)
    stretched = ops.cast(ops.maximum(size - 1, max(reach, 1)), "int32")
    return sample_linear(table, offsets * reach + reach * stretched, stretched, axis=0)


def embeddings_by_offset(table, size):
    """Spreads a table `(2 * size - 1, D)` to `(size, size, D)`: query, key -> row key - query."""
    positions = ops.arange(0, size, dtype="int32")
    return ops.take(table, positions[None, :] - positions[:, None] + (size - 1), axis=0)


def row_logits(query, embeddings):
    """Products of queries `(B, H, W, N, D)` and embeddings `(H, A, D)`: `(B, N, H, W, A)`."""
    return ops.einsum("bhwnd,had->bnhwa", query, embeddings)


def column_logits(query, embeddings):
    """Products of queries `(B, H, W, N, D)` and embeddings `(W, A, D)`: `(B, N, H, W, A)`."""
    return ops.einsum("bhwnd,wad->bnhwa", query, embeddings)


def relative_logits_2d(query: Tensor, row_table: Tensor, column_table: Tensor) -> Tensor:
    """Sums the row and the column logits for every pair of pixels.

    `logits[q, k] = query_q . row_table[row_k - row_q + H - 1] + query_q . column_table[...]`.

    Args:
        query: Tensor `(B, H, W, N, D)`.
        row_table: Tensor `(2 * H - 1, D)`.
        column_table: Tensor `(2 * W - 1, D)`.

    Returns:
        Tensor `(B, N, H * W, H * W)`.

    Raises:
        ValueError: If the query has not five axes, or a table has another number of rows.

    Reference:
        Bello et al., 2019, "Attention Augmented Convolutional Networks", section 3.2
        (https://arxiv.org/abs/1904.09925).
    """
    if len(query.shape) != 5:
        raise ValueError(
            "`query` must have the axes (batch, height, width, heads, head size). "
            f"Received: query={tuple(query.shape)}"
        )
    batch, height, width, heads, _ = ops.shape(query)
    checks.same_axes("row_table", row_table.shape, "2 * height - 1", (_rows(query.shape[1]),), (0,))
    checks.same_axes(
        "column_table", column_table.shape, "2 * width - 1", (_rows(query.shape[2]),), (0,)
    )
    rows = row_logits(query, embeddings_by_offset(row_table, height))
    columns = column_logits(query, embeddings_by_offset(column_table, width))
    logits = rows[..., :, None] + columns[..., None, :]
    return ops.reshape(logits, (batch, heads, height * width, height * width))


def fold_logits(query: Tensor, key: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Folds the logits of rows and of columns into the head: the product then holds them.

    Args:
        query: Tensor `(B, N, H, W, D)`, the heads before the map.
        key: Tensor `(B, N, A, C, D)`, a map of `A` rows and `C` columns.
        rows: Tensor that broadcasts to `(B, N, H, W, A)`, a term of the logit for each row of keys.
        columns: Tensor that broadcasts to `(B, N, H, W, C)`, a term for each column of keys.

    Returns:
        Query `(B, N, H * W, D + A + C)` and key `(B, N, A * C, D + A + C)`.
    """
    pixels = ops.shape(query)[:-1]
    key_height, key_width = ops.shape(key)[-3:-1]
    rows = ops.broadcast_to(rows, (*pixels, key_height))
    columns = ops.broadcast_to(columns, (*pixels, key_width))
    query = ops.concatenate([query, rows, columns], axis=-1)
    zeros = ops.zeros_like(key[..., :1])
    one_hot_rows = zeros + _identity(key_height, key.dtype)[:, None]
    one_hot_columns = zeros + _identity(key_width, key.dtype)[None, :]
    key = ops.concatenate([key, one_hot_rows, one_hot_columns], axis=-1)
    return flatten_pixels(query), flatten_pixels(key)


def _identity(size, dtype):
    positions = ops.arange(0, size, dtype="int32")
    return ops.cast(positions[:, None] == positions[None, :], dtype)


def _rows(size):
    return None if size is None else 2 * size - 1
