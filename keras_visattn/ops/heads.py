"""Heads lie side by side on the channels of a projection."""

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
