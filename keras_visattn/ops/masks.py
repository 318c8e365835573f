"""Masks of attention, each brought to a shape that broadcasts to `(B, N, T, S)`."""

import functools
import math

from keras import ops

from keras_visattn.ops import checks
from keras_visattn.ops.heads import scores_shape, to_sequence


def joint_mask(
    query,
    key,
    axes,
    num_heads,
    query_mask=None,
    value_mask=None,
    key_mask=None,
    attention_mask=None,
    causal=False,
    sliding_window=None,
):
    """Joins all masks of one attention.

    Returns:
        Tensor that broadcasts to `(B, N, T, S)`, or None if there is no mask.
    """
    masks = [
        positions_mask(name, mask, x, axes, side)
        for name, mask, x, side in (
            ("query_mask", query_mask, query, "query"),
            ("value_mask", value_mask, key, "key"),
            ("key_mask", key_mask, key, "key"),
        )
        if mask is not None
    ]
    if attention_mask is not None:
        masks.append(pairs_mask(attention_mask, query, key, axes, num_heads))
    if causal or sliding_window is not None:
        lengths = (math.prod(ops.shape(x)[axis] for axis in axes) for x in (query, key))
        masks.append(order_mask(*lengths, causal, sliding_window))
    return functools.reduce(ops.logical_and, masks) if masks else None


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


def order_mask(num_queries, num_keys, causal, sliding_window=None, start=0):
    """Hides the keys after a query, and those at the distance of the window or farther.

    The first query stands at the position `start`, the first key at 0.

    Returns:
        Tensor `(1, 1, T, S)`.
    """
    queries = start + ops.arange(0, num_queries, dtype="int32")[:, None]
    keys = ops.arange(0, num_keys, dtype="int32")[None, :]
    mask = queries >= keys if causal else ops.ones((num_queries, num_keys), "bool")
    if sliding_window is not None:
        mask = ops.logical_and(mask, ops.abs(queries - keys) < sliding_window)
    return mask[None, None]
