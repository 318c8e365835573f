"""Scaled dot-product attention (Vaswani et al., 2017)."""

import keras
from keras import ops

from keras_visattn import kernels
from keras_visattn.ops import checks, chunks


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
        query: Tensor `(B, N, T, D)`.
        key: Tensor `(B, N, S, D)`.
        value: Tensor `(B, N, S, E)`.
        mask: Boolean tensor that broadcasts to `(B, N, T, S)`, `True` where a query may attend.
        scale: Float, factor of the logits. Defaults to `D ** -0.5`.
        dropout: Float, share of the scores that is dropped before the values are averaged.
        seed: Integer or `keras.random.SeedGenerator` of the dropout.
        return_scores: Boolean, whether to return the scores (before dropout) too.
        implementation: `"core"`, the formula in `keras.ops`; `"fused"`, this package's kernel for
            the backend; `"flash"`, the backend's flash kernel through
            `keras.ops.dot_product_attention`. Both kernels refuse what they cannot do. `None`
            takes the fused kernel where it serves, and the core where not.

    Returns:
        Tensor `(B, N, T, E)`, and with `return_scores=True` the scores `(B, N, T, S)`.

    Raises:
        ValueError: If the shapes do not fit, or a kernel is asked for dropout or scores.
        NotImplementedError: If the fused kernel is asked for and the backend has none.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need", section 3.2
        (https://arxiv.org/abs/1706.03762).

    Example:
        >>> x = keras.random.normal((2, 4, 5, 8))
        >>> keras.ops.shape(keras_visattn.ops.attention(x, x, x))
        (2, 4, 5, 8)
    """
    if mask is not None:
        mask = ops.cast(mask, "bool")
        mask = ops.reshape(mask, (1,) * (4 - len(mask.shape)) + tuple(ops.shape(mask)))
    _check(query, key, value, mask)
    checks.choice("implementation", implementation, (None, "core", "fused", "flash"))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    wants_more = return_scores or dropout > 0
    if implementation in ("fused", "flash") and wants_more:
        raise ValueError(
            f"The {implementation} kernel must be asked for neither scores nor dropout. "
            f"Received: return_scores={return_scores}, dropout={dropout}"
        )
    if wants_more:
        outputs, scores = _core(query, key, value, mask, scale, dropout, seed)
        return (outputs, scores) if return_scores else outputs
    if implementation == "flash":
        query, key, value = (ops.swapaxes(x, 1, 2) for x in (query, key, value))
        outputs = ops.dot_product_attention(
            query, key, value, mask=mask, scale=scale, flash_attention=True
        )
        return ops.swapaxes(outputs, 1, 2)
    if implementation != "core":
        try:
            return kernels.fused_attention(query, key, value, mask, scale)
        except NotImplementedError:
            if implementation == "fused":
                raise
    return _core_in_chunks(query, key, value, mask, scale)


def _core_in_chunks(query, key, value, mask, scale):
    """Images in chunks; where the scores of one are too many, one by one, its queries in chunks."""
    _, heads, length, _ = query.shape
    cost_of_query = chunks.cost_of(heads, key.shape[2])
    tensors = [query, key, value]
    if mask is not None:
        batch, queries = ops.shape(query)[0], ops.shape(query)[2]
        shape = batch, ops.shape(mask)[1], queries, ops.shape(mask)[3]
        tensors.append(ops.broadcast_to(mask, shape))

    def core(query, key, value, mask=None):
        return _core(query, key, value, mask, scale)[0]

    def core_by_queries(query, key, value, *mask):
        def core_of_queries(query, *rest):
            query, *mask = (ops.moveaxis(x, 0, 2) for x in (query, *rest[:-2]))
            return ops.moveaxis(core(query, *rest[-2:], *mask), 2, 0)

        by_query = [ops.moveaxis(x, 2, 0) for x in (query, *mask)]
        outputs = chunks.in_chunks(core_of_queries, by_query, [key, value], cost_of_query)
        return ops.moveaxis(outputs, 0, 2)

    cost = chunks.cost_of(cost_of_query, length)
    if cost is not None and cost <= kernels.scores_at_a_time():
        return chunks.in_chunks(core, tensors, [], cost)
    return chunks.in_chunks(core_by_queries, tensors, [], None)


def _core(query, key, value, mask, scale, dropout=0.0, seed=None):
    """The formula: the averages `(B, N, T, E)`, and the scores `(B, N, T, S)` before dropout."""
    wide = keras.backend.result_type(query.dtype, "float32")
    query, key, wide_value = (ops.cast(x, wide) for x in (query, key, value))
    logits = ops.einsum("bntd,bnsd->bnts", query * scale, key)
    if mask is not None:
        logits = ops.where(mask, logits, masked_logit(wide))
    weights, total = _weights(logits)
    if mask is not None:
        weights = ops.where(mask, weights, 0.0)
    if total is None:
        total = ops.sum(weights, axis=-1, keepdims=True)
        total = ops.where(total > 0, total, 1.0)
    kept = keras.random.dropout(weights, dropout, seed=seed) if dropout > 0 else weights
    outputs = ops.einsum("bnts,bnse->bnte", kept, wide_value) / total
    return ops.cast(outputs, value.dtype), ops.cast(weights / total, value.dtype)


def _weights(logits):
    """Gives what the softmax weighs by, and the total to divide by, or None if it is to be summed.

    Where XLA compiles, the division comes last: it then fuses the whole without a tensor of
    scores.
    """
    if not kernels.fuses_operations():
        return ops.softmax(logits, axis=-1), 1.0
    largest = ops.max(logits, axis=-1, keepdims=True, initial=masked_logit(logits.dtype))
    return ops.exp(logits - ops.stop_gradient(largest)), None


def _check(query, key, value, mask):
    shapes = {"query": query.shape, "key": key.shape, "value": value.shape}
    for name, shape in shapes.items():
        if len(shape) != 4:
            raise ValueError(
                f"`{name}` must have the axes (batch, heads, length, head size). "
                f"Received: {name}={tuple(shape)}"
            )
    checks.same_axes("query", query.shape, "key", key.shape, (0, 1, 3))
    checks.same_axes("key", key.shape, "value", value.shape, (0, 1, 2))
    if mask is not None:
        batch, heads, length, _ = query.shape
        checks.broadcastable("mask", mask.shape, (batch, heads, length, key.shape[2]))
