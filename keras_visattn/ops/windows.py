"""Windows on a map: how many there are, and their averages."""

from keras import ops


def known_size(size):
    """Gives a size as an integer; `None` if it is unknown, a symbol, or traced by the backend."""
    return size if isinstance(size, int) else None


def divide_up(length, size):
    """Divides, and rounds up; nothing is negative, which exported programs round towards zero."""
    return (length + size - 1) // size


def window_spans(kernel_size, dilation_rate):
    """Gives how many pixels a window reaches beyond its first, along each axis."""
    return [(size - 1) * rate for size, rate in zip(kernel_size, dilation_rate, strict=True)]


def keys_before(kernel_size, dilation_rate, padding):
    """How many rows and columns before a query the first key of its window lies."""
    spans = window_spans(kernel_size, dilation_rate)
    return tuple(span // 2 if padding == "same" else 0 for span in spans)


def output_length(length, span, strides, padding):
    """Gives the number of windows along an axis, as a convolution has them; None if unknown."""
    if length is None:
        return None
    if padding == "valid":
        if length <= span:
            raise ValueError(
                '`padding="valid"` needs an image at least as large as the window. '
                f"Received: length={length}, window={span + 1}"
            )
        length -= span
    return divide_up(length, strides)


def average_pool_2d(x, pool_size, strides, before=None):
    """Averages windows of `pool_size` pixels, one every `strides`, over the pixels inside the map.

    `keras.ops.average_pool` counts repeated border pixels on one backend where the border is
    uneven; here the same windows mean the same everywhere.

    Args:
        x: Tensor `(B, H, W, C)`.
        pool_size: Integer, height and width of a window, at least `strides`.
        strides: Integer, distance of the windows.
        before: Integer, rows and columns of the first window that lie before the map. By default
            half of what the windows need beyond the map, rounded down, as `padding="same"` has it.

    Returns:
        Tensor `(B, ceil(H / strides), ceil(W / strides), C)`.
    """
    if pool_size == 1 and strides == 1:
        return x
    _, height, width, _ = ops.shape(x)
    windows = [_windows(size, pool_size, strides, before) for size in (height, width)]
    pool_size, strides, borders = zip(*windows, strict=True)
    widths = [(0, 0), *borders, (0, 0)]
    if all(isinstance(width, int) and width == 0 for pair in widths for width in pair):
        return _pool(x, pool_size, strides)
    inside = ops.ones((1, height, width, 1), x.dtype)
    covered = _pool(ops.pad(inside, widths), pool_size, strides)
    return _pool(ops.pad(x, widths), pool_size, strides) / covered


def repeat_pixels(x, times, height, width):
    """Repeats the pixels of `(B, H', W', C)` along both axes, and cuts the map to a size."""
    for axis, size in ((1, height), (2, width)):
        known = known_size(size)
        x = ops.repeat(x, times if known is None else min(times, known), axis=axis)
    return x[:, :height, :width]


def _windows(size, pool_size, strides, before):
    """Gives the pool's size, its stride and its border along an axis."""
    known = known_size(size)
    if known is not None and strides >= known and (before is None or pool_size - before >= known):
        return known, known, (0, 0)  # one window holds the whole axis: no need of a border
    return pool_size, strides, _border(size, pool_size, strides, before)


def _border(size, pool_size, strides, before):
    beyond = (divide_up(size, strides) - 1) * strides + pool_size - size
    before = beyond // 2 if before is None else before
    return before, beyond - before


def _pool(x, pool_size, strides):
    return ops.average_pool(
        x, pool_size, strides=strides, padding="valid", data_format="channels_last"
    )
