"""Scaled dot-product attention (Vaswani et al., 2017)."""

import math
from typing import Literal

import keras
from keras import ops

from keras_visattn import kernels
from keras_visattn.ops import checks, chunks
from keras_visattn.ops.drawn_seed import DrawnSeed, draw
from keras_visattn.ops.relative_position import fold_logits
from keras_visattn.typing import Outputs, Tensor


def masked_logit(dtype):
    """The logit that hides a key: far below any other, and finite, so that no product is NaN."""
    return -3e4 if keras.backend.standardize_dtype(dtype) == "float16" else -1e30


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    relative_logits: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int | keras.random.SeedGenerator | None = None,
    return_scores: bool = False,
    implementation: Literal["core", "loops", "fused", "flash"] | None = None,
) -> Outputs:
    """Averages the values by the softmax of the scaled products of queries and keys.

    `softmax(scale * query @ key^T) @ value`, head by head. The softmax is computed in float32 at
    least. A query that may attend to no key gets zeros, and its scores are zeros. Where the keys
    are the pixels of a map, each logit may have a term of the key's row and a term of its column:
    `scale * (query . key + row_logits[row] + column_logits[column])`.

    Args:
        query: Tensor `(B, N, T, D)`.
        key: Tensor `(B, N, S, D)`.
        value: Tensor `(B, N, S, E)`.
        mask: Boolean tensor that broadcasts to `(B, N, T, S)`, `True` where a query may attend.
        relative_logits: Pair of tensors, `(B, N, T, A)` for the rows and `(B, N, T, C)` for the
            columns, if the keys are a map of A rows and C columns.
        scale: Float, factor of the logits. Defaults to `D ** -0.5`.
        dropout: Float, share of the scores that is dropped before the values are averaged.
        seed: Integer or `keras.random.SeedGenerator` of the dropout.
        return_scores: Boolean, whether to return the scores (before dropout) too.
        implementation: `"core"`, the formula in `keras.ops`; `"loops"`, this package's kernel for
            the CPU; `"fused"`, the backend's kernel as this package calls it; `"flash"`, the
            backend's flash kernel through `keras.ops.dot_product_attention`. Kernels refuse what
            they cannot do. `None` takes the loops where they are the fastest, the fused kernel
            where it serves, and the core where not.

    Returns:
        Tensor `(B, N, T, E)`, and with `return_scores=True` the scores `(B, N, T, S)`.

    Raises:
        ValueError: If the shapes do not fit, or a kernel is asked for dropout or scores.
        NotImplementedError: If the loops or the fused kernel are asked for what they cannot do.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need", section 3.2
        (https://arxiv.org/abs/1706.03762).

    Examples:
        >>> x = keras.random.normal((2, 4, 5, 8))
        >>> keras.ops.shape(keras_visattn.ops.attention(x, x, x))
        (2, 4, 5, 8)
    """
    if mask is not None:
        mask = ops.cast(mask, "bool")
        mask = ops.reshape(mask, (1,) * (4 - len(mask.shape)) + tuple(ops.shape(mask)))
    terms = () if relative_logits is None else tuple(relative_logits)
    _check(query, key, value, mask, terms)
    checks.choice("implementation", implementation, (None, "core", "loops", "fused", "flash"))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if implementation in ("loops", "fused", "flash") and (return_scores or dropout > 0):
        raise ValueError(
            f"The {implementation} kernel must be asked for neither scores nor dropout. "
            f"Received: return_scores={return_scores}, dropout={dropout}"
        )
    drawn = draw(seed) if dropout > 0 else None
    if return_scores:
        seed = None if drawn is None else DrawnSeed(drawn, 0)
        return _core(query, key, value, mask, terms, scale, dropout, seed)
    if dropout > 0:
        return _core_in_chunks(query, key, value, mask, terms, scale, dropout, drawn)
    if implementation == "flash":
        query, key = _folded(query, key, terms)
        query, key, value = (ops.swapaxes(x, 1, 2) for x in (query, key, value))
        outputs = ops.dot_product_attention(
            query, key, value, mask=mask, scale=scale, flash_attention=True
        )
        return ops.swapaxes(outputs, 1, 2)
    if implementation in (None, "loops"):
        try:
            return _in_loops(query, key, value, mask, terms, scale, implementation is not None)
        except NotImplementedError:
            if implementation is not None:
                raise
    if implementation == "fused" or (implementation is None and kernels.fuses_attention()):
        try:
            return kernels.fused_attention(*_folded(query, key, terms), value, mask, scale)
        except NotImplementedError:
            if implementation == "fused":
                raise
    return _core_in_chunks(query, key, value, mask, terms, scale)


def _in_loops(query, key, value, mask, terms, scale, any_shape):
    """The averages by the kernel for the CPU."""
    if mask is not None:
        raise NotImplementedError("The loops take no mask.")

    def otherwise(query, key, value, *terms):
        return _core_in_chunks(query, key, value, None, terms, scale)

    return kernels.attention_in_loops(query, key, value, terms, scale, otherwise, any_shape)


def _folded(query, key, terms):
    """Query and key whose products hold the terms of rows and columns."""
    if not terms:
        return query, key
    sizes = [ops.shape(x)[-1] for x in terms]
    key = ops.reshape(key, (*ops.shape(key)[:2], *sizes, ops.shape(key)[-1]))
    return fold_logits(query[..., None, :], key, *(x[..., None, :] for x in terms))


def _core_in_chunks(query, key, value, mask, terms, scale, dropout=0.0, drawn=None):
    """Images in chunks; where the scores of one are too many, one by one, its queries in chunks."""
    _, heads, length, _ = query.shape
    cost_of_query = chunks.cost_of(heads, key.shape[2])
    by_query = [query, *terms]
    batch, queries = ops.shape(query)[0], ops.shape(query)[2]
    if mask is not None:
        shape = batch, ops.shape(mask)[1], queries, ops.shape(mask)[3]
        by_query.append(ops.broadcast_to(mask, shape))
    if drawn is not None:  # the first query of a chunk tells its random numbers from another's
        by_query.append(ops.reshape(ops.arange(0, batch * queries), (batch, 1, queries, 1)))

    def core(query, *rest):
        *more, key, value = rest
        seed = None if drawn is None else DrawnSeed(drawn, more.pop()[0, 0, 0, 0])
        terms_of_chunk, masks = more[: len(terms)], more[len(terms) :]
        mask = masks[0] if masks else None
        return _core(query, key, value, mask, terms_of_chunk, scale, dropout, seed)[0]

    def core_by_queries(*tensors):
        def core_of_queries(*tensors):
            *pieces, key, value = tensors
            pieces = (ops.moveaxis(x, 0, 2) for x in pieces)
            return ops.moveaxis(core(*pieces, key, value), 2, 0)

        *whole, key, value = tensors
        pieces = [ops.moveaxis(x, 2, 0) for x in whole]
        outputs = chunks.in_chunks(core_of_queries, pieces, [key, value], cost_of_query)
        return ops.moveaxis(outputs, 0, 2)

    cost = chunks.cost_of(cost_of_query, length)
    if cost is not None and cost <= kernels.scores_at_a_time():
        return chunks.in_chunks(core, [*by_query, key, value], [], cost)
    return chunks.in_chunks(core_by_queries, [*by_query, key, value], [], None)


def _core(query, key, value, mask, terms, scale, dropout, seed):
    """The formula: the averages `(B, N, T, E)`, and the scores `(B, N, T, S)` before dropout."""
    wide = keras.backend.result_type(query.dtype, "float32")
    query, key, wide_value = (ops.cast(x, wide) for x in (query, key, value))
    logits = ops.einsum("bntd,bnsd->bnts", query * scale, key)
    if terms:
        rows, columns = (ops.cast(x, wide) * scale for x in terms)
        shape = ops.shape(logits)
        logits = ops.reshape(logits, (*shape[:3], ops.shape(rows)[-1], ops.shape(columns)[-1]))
        logits = logits + rows[..., :, None] + columns[..., None, :]
        logits = ops.reshape(logits, shape)
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
    if not kernels.fuses_operations() and logits.shape[-1] != 1:  # Keras warns of a single key
        return ops.softmax(logits, axis=-1), 1.0
    if 0 in logits.shape:
        return logits, None
    largest = ops.max(logits, axis=-1, keepdims=True)
    return ops.exp(logits - ops.stop_gradient(largest)), None


def _check(query, key, value, mask, terms):
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
    if not terms:
        return
    shapes = [tuple(x.shape) for x in terms]
    received = f"Received: {shapes}, query={tuple(query.shape)}, key={tuple(key.shape)}"
    if [len(shape) for shape in shapes] != [4, 4]:
        raise ValueError(
            "`relative_logits` must be two tensors with the axes (batch, heads, queries, rows or "
            f"columns of keys). {received}"
        )
    for shape in shapes:
        checks.same_axes("query", query.shape, "relative_logits", shape, (0, 1, 2))
    sizes = [shape[-1] for shape in shapes]
    if None not in (*sizes, key.shape[2]) and math.prod(sizes) != key.shape[2]:
        raise ValueError(
            f"The rows and columns of `relative_logits` must be those of the keys. {received}"
        )
