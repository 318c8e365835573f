"""Attention of heads on the CPU, NumPy arrays in and out: heads, or parts of them, side by side."""

import functools
import itertools
import math

import numpy as np

from keras_visattn.kernels.loops import find
from keras_visattn.kernels.threads import processors, run

loops = functools.partial(find, "attention_loops")


def pays(query, key, value, rule):
    """Whether the loops are the fastest, by what was measured.

    Args:
        query: Tensor `(B, N, T, D)`.
        key: Tensor `(B, N, S, D)`.
        value: Tensor `(B, N, S, E)`.
        rule: Pairs of the least length, the square root of T * S, and the largest size of the heads
            that the loops win from there on. A length that is unknown counts as long.
    """
    lengths = query.shape[2], key.shape[2]
    known = all(isinstance(length, int) for length in lengths)  # neither None nor a symbol
    length = math.sqrt(math.prod(lengths)) if known else math.inf
    size = max(query.shape[3], value.shape[3])
    return any(length >= least and size <= largest for least, largest in rule)


def forward_shapes(query, key, value, *terms, scale):
    """The shapes of what `forward` writes."""
    return (*query.shape[:-1], value.shape[-1]), query.shape[:-1]


def forward(query, key, value, *others, scale):
    """Averages the values by the softmax of the scaled products of queries and keys.

    Args:
        query: float32 array `(B, N, T, D)`.
        key: float32 array `(B, N, S, D)`.
        value: float32 array `(B, N, S, E)`.
        *others: float32 arrays: if the keys are a map, the terms of its rows `(B, N, T, A)` and of
            its columns `(B, N, T, C)`; then `(B, N, T, E)` to write the averages to, and
            `(B, N, T)` to write to what `backward` needs of the scores.
        scale: Float, factor of the logits.
    """
    *terms, outputs, log_sums = others
    arrays = _by_heads(query, key, value, *_with_terms(query, terms), outputs, log_sums)

    def attend(_, *place):
        loops().forward(*arrays, np.float32(scale), *place)

    run(attend, _jobs(query))


def backward_shapes(*arguments, scale):
    """The shapes of what `backward` writes."""
    return [x.shape for x in arguments[:-3]]


def backward(*arguments, scale):
    """Writes gradients.

    Args:
        *arguments: The tensors that `forward` reads, what it wrote, the gradient of the averages;
            then an array for the gradient of each tensor.
        scale: Float, factor of the logits.
    """
    count = len(arguments) // 2 - 1
    query, key, value, *terms = arguments[:count]
    outputs, log_sums, upstream = arguments[count : count + 3]
    to_query, to_key, to_value, *to_terms = arguments[count + 3 :]
    jobs = _jobs(query)
    parts = 1 + max(part for part, *_ in jobs)
    shares = [
        np.empty((parts, *x.shape), np.float32) if parts > 1 else x[None]
        for x in (to_key, to_value)
    ]
    read = *_with_terms(query, terms), outputs, log_sums, upstream
    read = tuple(_by_heads(query, key, value, *read))
    to_query, *to_terms = _by_heads(to_query, *_with_terms(query, to_terms))

    def differentiate(part, *place):
        written = to_query, *_by_heads(*(x[part] for x in shares)), *to_terms
        loops().backward(read, written, np.float32(scale), *place)

    run(differentiate, jobs)
    if parts > 1:
        for share, gradient in zip(shares, (to_key, to_value), strict=True):
            np.sum(share, axis=0, out=gradient)


def _with_terms(query, terms):
    """Gives terms of no rows and no columns where there are none."""
    return terms or 2 * [np.empty((*query.shape[:-1], 0), np.float32)]


def _by_heads(*arrays):
    """Joins images and heads; the loops are compiled for arrays without gaps."""
    arrays = (np.ascontiguousarray(x) for x in arrays)
    return [x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]) for x in arrays]


def _jobs(query):
    """Ranges of heads, or of queries of each head where there are few: some for each processor.

    Each is the number of the range of queries, the range of heads, the first query and the end.
    """
    batch, heads, length, _ = query.shape
    wanted = 1 if processors() == 1 else 8 * processors()
    groups = _ranges(batch * heads, wanted)
    pieces = _ranges(length, min(-(-wanted // len(groups)), -(-length // 64)))
    return [
        (part, group, *piece)
        for group, (part, piece) in itertools.product(groups, enumerate(pieces))
    ]


def _ranges(length, count):
    """Cuts a length into ranges, at most as many as asked for."""
    count = min(length, count)
    ends = [length * number // count for number in range(count + 1)]
    return list(itertools.pairwise(ends))
