"""Scaled dot-product attention (Vaswani et al., 2017)."""

import keras
from keras import ops

from keras_visattn.ops import checks


def masked_logit(dtype):
    """The logit that hides a key: far below any other, and finite, so that no product is NaN."""
    return -3e4 if keras.backend.standardize_dtype(dtype) == "float16" else -1e30


def attention(
    query,
    key,
    value,
    mask=None,
    scale=None,
    dropout=0.0,
    seed=None,
    return_scores=False,
    implementation=None,
):
    """Averages the values by the softmax of the scaled products of queries and keys.

    `softmax(scale * query @ key^T) @ value`, head by head. The softmax is computed in float32 at
    least. A query that may attend to no key gets zeros, and its scores are zeros.

    Args:
        query: Tensor `(B, T, N, D)`.
        key: Tensor `(B, S, N, D)`.
        value: Tensor `(B, S, N, E)`.
        mask: Boolean tensor that broadcasts to `(B, N, T, S)`, `True` where a query may attend.
        scale: Float, factor of the logits. Defaults to `D ** -0.5`.
        dropout: Float, share of the scores that is dropped before the values are averaged.
        seed: Integer or `keras.random.SeedGenerator` of the dropout.
        return_scores: Boolean, whether to return the scores (before dropout) too.
        implementation: `"core"`, the formula in `keras.ops`; `"flash"`, the backend's flash
            kernel through `keras.ops.dot_product_attention`, which refuses what it cannot do;
            `None` takes the core.

    Returns:
        Tensor `(B, T, N, E)`, and with `return_scores=True` the scores `(B, N, T, S)`.

    Raises:
        ValueError: If the shapes do not fit, or the flash kernel is asked for dropout or scores.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need", section 3.2
        (https://arxiv.org/abs/1706.03762).

    Example:
        >>> x = keras.random.normal((2, 5, 4, 8))
        >>> keras.ops.shape(keras_visattn.ops.attention(x, x, x))
        (2, 5, 4, 8)
    """
    _check(query, key, value, mask)
    checks.choice("implementation", implementation, (None, "core", "flash"))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if implementation == "flash":
        if return_scores or dropout > 0:
            raise ValueError(
                "The flash kernel must be asked for neither scores nor dropout. "
                f"Received: return_scores={return_scores}, dropout={dropout}"
            )
        return ops.dot_product_attention(
            query, key, value, mask=mask, scale=scale, flash_attention=True
        )

    wide = keras.backend.result_type(query.dtype, "float32")
    query, key, wide_value = (ops.cast(x, wide) for x in (query, key, value))
    logits = ops.einsum("btnd,bsnd->bnts", query * scale, key)
    if mask is not None:
        mask = ops.cast(mask, "bool")
        logits = ops.where(mask, logits, masked_logit(wide))
    largest = ops.max(logits, axis=-1, keepdims=True, initial=masked_logit(wide))
    weights = ops.exp(logits - ops.stop_gradient(largest))
    if mask is not None:
        weights = ops.where(mask, weights, 0.0)
    total = ops.sum(weights, axis=-1, keepdims=True)
    total = ops.where(total > 0, total, 1.0)
    kept = keras.random.dropout(weights, dropout, seed=seed) if dropout > 0 else weights
    outputs = ops.einsum("bnts,bsne->btne", kept, wide_value)
    outputs = ops.cast(outputs / ops.transpose(total, (0, 2, 1, 3)), value.dtype)
    if return_scores:
        return outputs, ops.cast(weights / total, value.dtype)
    return outputs


def _check(query, key, value, mask):
    shapes = {"query": query.shape, "key": key.shape, "value": value.shape}
    for name, shape in shapes.items():
        if len(shape) != 4:
            raise ValueError(
                f"`{name}` must have the axes (batch, length, heads, head size). "
                f"Received: {name}={tuple(shape)}"
            )
    checks.same_axes("query", query.shape, "key", key.shape, (0, 2, 3))
    checks.same_axes("key", key.shape, "value", value.shape, (0, 1, 2))
    if mask is not None:
        batch, length, heads, _ = query.shape
        checks.broadcastable("mask", mask.shape, (batch, heads, length, key.shape[1]))
