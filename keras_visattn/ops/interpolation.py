"""Linear interpolation along an axis, with sizes that may be unknown until run time."""

from keras import ops


def sample_linear(x, positions, axis):
    """Reads a tensor between its entries: `positions` are fractional indices along `axis`."""
    last = ops.shape(x)[axis] - 1
    lower = ops.floor(positions)
    shape = [1] * len(x.shape)
    shape[axis] = -1
    fraction = ops.reshape(ops.cast(positions - lower, x.dtype), shape)
    lower = ops.clip(ops.cast(lower, "int32"), 0, last)
    upper = ops.minimum(lower + 1, last)
    return ops.take(x, lower, axis=axis) * (1 - fraction) + ops.take(x, upper, axis=axis) * fraction


def resize_linear(x, size, axis):
    """Resizes an axis linearly between pixel centres, the border held, as image resizing does."""
    length = ops.cast(ops.shape(x)[axis], "float32")
    centres = ops.cast(ops.arange(size, dtype="int32"), "float32") + 0.5
    positions = centres * (length / ops.cast(size, "float32")) - 0.5
    return sample_linear(x, ops.clip(positions, 0.0, length - 1.0), axis)
