"""Masks of attention, each brought to a shape that broadcasts to `(B, N, T, S)`."""

import math

from keras import ops

from keras_visattn.ops import checks
from keras_visattn.ops.heads import scores_shape, to_sequence


def positions_mask(name, mask, x, axes, side):
    """Spreads a mask of positions, of the shape of `x` without channels, over a side's axis.

    Args:
        name: String, what errors call the mask.
        mask: Tensor that broadcasts to the shape of `x` without its last axis.
        x: Tensor `(B, ..., C)`.
        axes: Tuple of integers, the axes attended over.
        side: `"query"` or `"key"`.

    Returns:
        Tensor `(B', 1, T, 1)` or `(B', 1, 1, S)`.
    """
    checks.broadcastable(name, mask.shape, x.shape[:-1])
    mask = ops.broadcast_to(ops.cast(mask, "bool"), ops.shape(x)[:-1])
    mask = to_sequence(mask[..., None, None], axes)
    return mask if side == "query" else ops.swapaxes(mask, 2, 3)


def pairs_mask(mask, query, key, axes, num_heads):
    """Flattens a mask of pairs `(B, ..., query axes, key axes)`, with or without an axis of heads.

    Missing leading axes are broadcast.

    Returns:
        Tensor that broadcasts to `(B', N, T, S)`.
    """
    mask = ops.cast(mask, "bool")
    num_rest = len(query.shape) - 1 - len(axes)
    target = scores_shape(query.shape, key.shape, axes, num_heads)
    missing = len(target) - len(mask.shape)
    if missing > 0:
        mask = ops.reshape(mask, (1,) * (missing - 1) + tuple(ops.shape(mask)))
        mask = ops.expand_dims(mask, num_rest)
    checks.broadcastable("attention_mask", mask.shape, target)
    if len(axes) == num_rest == 1:
        return mask
    heads = ops.shape(mask)[num_rest]
    full = scores_shape(ops.shape(query), ops.shape(key), axes, heads)
    mask = ops.broadcast_to(mask, full)
    after = num_rest + 1
    lengths = (full[:num_rest], full[after : after + len(axes)], full[after + len(axes) :])
    rest, queries, keys = (math.prod(length) for length in lengths)
    return ops.reshape(mask, (rest, heads, queries, keys))


def order_mask(num_queries, num_keys, causal, sliding_window):
    """Hides the keys after a query, and those at the distance of the window or farther.

    Returns:
        Tensor `(1, 1, T, S)`.
    """
    queries = ops.arange(num_queries, dtype="int32")[:, None]
    keys = ops.arange(num_keys, dtype="int32")[None, :]
    mask = queries >= keys if causal else ops.ones((num_queries, num_keys), "bool")
    if sliding_window is not None:
        mask = ops.logical_and(mask, ops.abs(queries - keys) < sliding_window)
    return mask[None, None]
