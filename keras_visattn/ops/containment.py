"""Keeps what is not a finite number in its windows, where tiles would spread it."""

from keras import ops

from keras_visattn.ops.windows import window_spans


def contain(attend, query, key, value, kernel_size, dilation_rate, padding):
    """Attends without the pixels that are not finite, and answers NaN where a window has one.

    In a tile every query multiplies every key, also those that it does not see, and zero times
    infinity is not zero.

    Args:
        attend: Function of query, key and value that gives a tensor `(B, H', W', N, ...)`, or some.
        query: Tensor `(B, H', W', N, D)`.
        key: Tensor `(B, H, W, N, D)`.
        value: Tensor `(B, H, W, N, E)`.
        kernel_size: Pair of integers.
        dilation_rate: Pair of integers.
        padding: `"same"` or `"valid"`.
    """
    total = sum(
        ops.sum(ops.abs(ops.cast(x, "float32")), axis=-1, keepdims=True) for x in (key, value)
    )
    finite = ops.less(total, float("inf"))  # also NaN is not less
    bad = ops.where(finite, 0.0, 1.0)
    spans = window_spans(kernel_size, dilation_rate)
    for axis, size, rate, span in zip((1, 2), kernel_size, dilation_rate, spans, strict=True):
        bad = _largest_in_windows(bad, axis, size, rate, span // 2 if padding == "same" else 0)

    def mark(x):
        return ops.where(ops.greater(bad, 0), ops.cast(float("nan"), x.dtype), x)

    outputs = attend(query, *(ops.where(finite, x, ops.zeros_like(x)) for x in (key, value)))
    return tuple(map(mark, outputs)) if isinstance(outputs, tuple) else mark(outputs)


def _largest_in_windows(x, axis, size, rate, border):
    """The largest value of each window along an axis; the windows double until they are full."""
    widths = [(border, border) if each == axis else (0, 0) for each in range(len(x.shape))]
    x = ops.pad(x, widths) if border else x
    before, covered = (slice(None),) * axis, 1
    while covered < size:
        step = min(covered, size - covered)
        shift = step * rate
        x = ops.maximum(x[(*before, slice(None, -shift))], x[(*before, slice(shift, None))])
        covered += step
    return x
