"""Heads lie side by side on the channels of a projection."""

import math

from keras import ops


def split_heads(projected, num_heads, widths):
    """Cuts the channels `(..., sum of widths)` into one tensor `(..., N, width / N)` each."""
    pixels = ops.shape(projected)[:-1]
    if len(set(widths)) == 1:  # PyTorch's gradient of a slice writes a whole map of zeros
        parts = ops.split(projected, len(widths), axis=-1)
    else:  # a split at places cannot be exported everywhere
        parts, start = [], 0
        for width in widths:
            parts.append(projected[..., start : start + width])
            start += width
    return [
        ops.reshape(x, (*pixels, num_heads, width // num_heads))
        for x, width in zip(parts, widths, strict=True)
    ]


def heads_first(x):
    """Turns a map `(B, H, W, N, D)` into `(B, N, H, W, D)`."""
    return ops.moveaxis(x, 3, 1)


def reshape(x, shape):
    """Reshapes; a single size that is unknown until the program runs follows from the rest."""
    shape = tuple(shape)
    unknown = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
    if len(unknown) == 1:
        shape = (*shape[: unknown[0]], -1, *shape[unknown[0] + 1 :])
    return ops.reshape(x, shape)


def flatten_pixels(x):
    """Turns a map `(B, N, H, W, D)` into a sequence `(B, N, H * W, D)`."""
    batch, heads, height, width, size = ops.shape(x)
    return reshape(x, (batch, heads, height * width, size))


def attended_axes(axes, shape):
    """Gives the axes as non-negative numbers; None are all between the batch and the channels."""
    if axes is None:
        return tuple(range(1, len(shape) - 1))
    return tuple(axis + len(shape) if axis < 0 else axis for axis in axes)


def to_sequence(x, axes):
    """Turns `(B, ..., N, D)` into `(B', N, T, D)`: `axes` become T, the other axes B'."""
    count = len(x.shape) - 2
    rest = [axis for axis in range(count) if axis not in axes]
    sizes = ops.shape(x)
    x = ops.transpose(x, (*rest, count, *axes, count + 1))
    batch, length = (math.prod(sizes[axis] for axis in group) for group in (rest, axes))
    return ops.reshape(x, (batch, sizes[count], length, sizes[count + 1]))


def from_sequence(x, shape, axes):
    """Turns `(B', N, T, D)` back into `(B, ..., N, D)`; `shape` is that of the axes `(B, ...)`."""
    count = len(shape)
    rest = [axis for axis in range(count) if axis not in axes]
    order = [*rest, count, *axes, count + 1]
    _, heads, _, size = ops.shape(x)
    sizes = (*shape, heads, size)
    x = ops.reshape(x, [sizes[axis] for axis in order])
    return ops.transpose(x, sorted(range(count + 2), key=order.__getitem__))


def scores_shape(query_shape, key_shape, axes, num_heads):
    """Gives the shape of scores: the other axes, the heads, the query's axes, the key's axes."""
    rest = [axis for axis in range(len(query_shape) - 1) if axis not in axes]
    return (
        *(query_shape[axis] for axis in rest),
        num_heads,
        *(query_shape[axis] for axis in axes),
        *(key_shape[axis] for axis in axes),
    )
