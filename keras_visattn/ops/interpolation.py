"""Linear interpolation along an axis, with sizes that may be unknown until run time."""

from keras import ops


def sample_linear(x, numerator, denominator, axis):
    """Reads a tensor between its entries, at the fractional indices `numerator / denominator`.

    Both are integers, so that the entry below and the fraction never round apart.
    """
    last = ops.shape(x)[axis] - 1
    lower = ops.floor_divide(numerator, denominator)
    shape = [1] * len(x.shape)
    shape[axis] = -1
    fraction = ops.cast(numerator - lower * denominator, "float32")
    fraction = ops.cast(fraction / ops.cast(denominator, "float32"), x.dtype)
    fraction = ops.reshape(fraction, shape)
    upper = ops.minimum(lower + 1, last)
    return ops.take(x, lower, axis=axis) * (1 - fraction) + ops.take(x, upper, axis=axis) * fraction


def resize_linear(x, size, axis):
    """Resizes an axis linearly between pixel centres, the border held, as image resizing does."""
    length = ops.shape(x)[axis]
    centres = 2 * ops.arange(0, size, dtype="int32") + 1
    numerator = ops.clip(centres * length - size, 0, 2 * size * (length - 1))
    return sample_linear(x, numerator, 2 * size, axis)
