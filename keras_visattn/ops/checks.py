"""What an argument must be: each check returns the value or raises a ValueError."""

import math
import numbers
from typing import Any

# More is a mistake that would be noticed only when the memory is full.
LARGEST_INTEGER = 2**24
LARGEST_WINDOW = 2**16  # rows times columns
LARGEST_WEIGHT = 2**31 - 1  # numbers, which many kernels count in 32 bits


def positive_integer(name: str, value: Any) -> int:
    if not _is_positive(value):
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    _not_more(name, value, LARGEST_INTEGER)
    return int(value)


def _is_positive(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value > 0


def _not_more(name, value, largest):
    if value > largest:
        raise ValueError(f"`{name}` must be {largest:,} at most. Received: {name}={value!r}")


def weight(names, *shape):
    """Refuses arguments that make too large a weight, before memory is asked for."""
    if math.prod(shape) > LARGEST_WEIGHT:
        raise ValueError(
            f"{names} must leave a weight {LARGEST_WEIGHT:,} numbers at most. "
            f"Received: a weight of the shape {shape}"
        )


def integers(name, value):
    """A tuple of an integer or of some; None stays."""
    if value is None:
        return None
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not values or not all(isinstance(v, numbers.Integral) for v in values):
        raise ValueError(
            f"`{name}` must be an integer, a tuple of integers or None. Received: {name}={value!r}"
        )
    return values


def pair(name: str, value: Any) -> tuple[int, int]:
    """An integer for both axes, or one each for the height and the width."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2 or not all(map(_is_positive, values)):
        raise ValueError(
            f"`{name}` must be a positive integer or a pair of them. Received: {name}={value!r}"
        )
    height, width = values
    for one in values:
        _not_more(name, one, LARGEST_INTEGER)
    return int(height), int(width)


def window(name: str, value: Any) -> tuple[int, int]:
    """A pair whose product is no larger than any window."""
    values = pair(name, value)
    if values[0] * values[1] > LARGEST_WINDOW:
        raise ValueError(
            f"`{name}` must have {LARGEST_WINDOW:,} places at most. Received: {name}={value!r}"
        )
    return values


def odd_window(name: str, value: Any) -> tuple[int, int]:
    values = window(name, value)
    if any(v % 2 == 0 for v in values):
        raise ValueError(
            f"`{name}` must be odd, so that the window has a centre. Received: {name}={value!r}"
        )
    return values


def choice(name, value, allowed):
    if value not in allowed:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, allowed))}. Received: {name}={value!r}"
        )
    return value


def positive_number(name, value):
    if not isinstance(value, numbers.Real) or not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be a positive number. Received: {name}={value!r}")
    return value


def fraction(name, value):
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a number in [0, 1]. Received: {name}={value!r}")
    return value


def divides(divisor_name, divisor, name, value):
    if value % divisor:
        raise ValueError(
            f"`{divisor_name}` must divide `{name}`. "
            f"Received: {divisor_name}={divisor}, {name}={value}"
        )


def rank(name, shape, ranks):
    """Checks the number of axes, and that no axis but the first is empty."""
    shape = tuple(shape)
    if len(shape) not in ranks:
        raise ValueError(
            f"`{name}` must have {' or '.join(map(str, ranks))} axes. Received: {name}={shape}"
        )
    if any(size == 0 for size in shape[1:]):
        raise ValueError(f"`{name}` must not have an empty axis. Received: {name}={shape}")
    return shape


def same_axes(first_name, first, second_name, second, axes):
    """Checks that two shapes agree on the axes, as far as they are known."""
    for axis in axes:
        if None not in (first[axis], second[axis]) and first[axis] != second[axis]:
            raise ValueError(
                f"`{first_name}` and `{second_name}` must agree on axis {axis}. "
                f"Received: {first_name}={tuple(first)}, {second_name}={tuple(second)}"
            )


def broadcastable(name, shape, target):
    """Checks that a shape broadcasts to the target, as far as both are known."""
    shape, target = tuple(shape), tuple(target)
    if len(shape) != len(target) or any(
        None not in (have, want) and have not in (1, want)
        for have, want in zip(shape, target, strict=True)
    ):
        raise ValueError(f"`{name}` must broadcast to {target}. Received: {name}={shape}")
