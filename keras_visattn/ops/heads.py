"""Heads lie side by side on the channels of a projection."""

import math

from keras import ops


def split_heads(projected, num_heads, widths):
    """Cuts the channels `(..., sum of widths)` into one tensor `(..., N, width / N)` each."""
    pixels = ops.shape(projected)[:-1]
    parts, start = [], 0
    for width in widths:
        part = projected[..., start : start + width]
        parts.append(ops.reshape(part, (*pixels, num_heads, width // num_heads)))
        start += width
    return parts


def flatten_pixels(x):
    """Turns a map `(B, H, W, N, D)` into a sequence `(B, H * W, N, D)`."""
    batch, height, width, *rest = ops.shape(x)
    return ops.reshape(x, (batch, height * width, *rest))


def to_sequence(x, axes):
    """Turns `(B, ..., N, D)` into `(B', T, N, D)`: `axes` become T, the other axes B'."""
    count = len(x.shape) - 2
    rest = [axis for axis in range(count) if axis not in axes]
    x = ops.transpose(x, (*rest, *axes, count, count + 1))
    shape = ops.shape(x)
    sizes = (math.prod(shape[: len(rest)]), math.prod(shape[len(rest) : count]))
    return ops.reshape(x, (*sizes, *shape[count:]))


def from_sequence(x, shape, axes):
    """Turns `(B', T, N, D)` back into `(B, ..., N, D)`; `shape` is that of the axes `(B, ...)`."""
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    order = [*rest, *axes]
    x = ops.reshape(x, (*(shape[axis] for axis in order), *ops.shape(x)[2:]))
    back = sorted(range(len(order)), key=order.__getitem__)
    return ops.transpose(x, (*back, len(order), len(order) + 1))


def scores_shape(query_shape, key_shape, axes, num_heads):
    """Gives the shape of scores: the other axes, the heads, the query's axes, the key's axes."""
    rest = [axis for axis in range(len(query_shape) - 1) if axis not in axes]
    return (
        *(query_shape[axis] for axis in rest),
        num_heads,
        *(query_shape[axis] for axis in axes),
        *(key_shape[axis] for axis in axes),
    )
