"""Attention within blocks on the CPU, NumPy arrays in and out: groups of blocks, side by side."""

import functools

from keras_visattn.kernels.loops import find
from keras_visattn.kernels.threads import run

LINE = 128  # blocks and heads that are worked on at a time

loops = functools.partial(find, "block_loops")


def forward_shapes(query, key, value, *, block):
    """The shapes of what `forward` writes."""
    batch, height, width, heads, _ = query.shape
    count = batch * -(-height // block[0]) * -(-width // block[1])
    return (*query.shape[:-1], value.shape[-1]), (count, block[0] * block[1], heads)


def forward(query, key, value, outputs, log_sums, *, block):
    """Attends from each pixel to its block.

    Args:
        query: float32 array `(B, H, W, N, D)`.
        key: float32 array `(B, H, W, N, D)`.
        value: float32 array `(B, H, W, N, E)`.
        outputs: float32 array `(B, H, W, N, E)` to write the averages to.
        log_sums: float32 array to write to what `backward` needs of the scores.
        block: Pair, height and width of a block.
    """

    def attend(first, end):
        loops().forward(query, key, value, outputs, log_sums, block, first, end)

    run(attend, _jobs(log_sums))


def backward_shapes(query, key, value, *rest, block):
    """The shapes of what `backward` writes."""
    return query.shape, key.shape, value.shape


def backward(*arguments, block):
    """Writes the gradients of the first three arguments of `forward`.

    Args:
        *arguments: The five of `forward`, the gradient of the averages; then an array for each of
            the three gradients.
        block: As of `forward`.
    """

    def differentiate(first, end):
        loops().backward(arguments[:6], arguments[6:], block, first, end)

    run(differentiate, _jobs(arguments[4]))


def _jobs(log_sums):
    count, _, heads = log_sums.shape
    size = max(1, LINE // heads)
    return [(start, min(start + size, count)) for start in range(0, count, size)]
