"""Absolute positions: sinusoids (Vaswani et al., 2017) and coordinates (Liu et al., 2018)."""

import numpy as np
from keras import ops

from keras_visattn.typing import Tensor


def sinusoidal_encoding(
    length: int | Tensor, channels: int, max_wavelength: float = 10000.0
) -> Tensor:
    """Makes sines on even and cosines on odd channels, in float32.

    `sin(t / max_wavelength ** (2 i / channels))` on channel `2 i`, and the cosine of the same
    angle on channel `2 i + 1`.

    Args:
        length: Integer or scalar tensor, number of positions.
        channels: Integer, number of channels.
        max_wavelength: Float, the longest wavelength is `2 pi` times this.

    Returns:
        Tensor `(length, channels)`.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need", section 3.5
        (https://arxiv.org/abs/1706.03762).
    """
    channels = int(channels)  # a trace of PyTorch has it as a tensor
    channel = np.arange(channels)
    frequency = float(max_wavelength) ** (-2.0 * (channel // 2) / channels)
    position = ops.cast(ops.arange(0, length, dtype="int32"), "float32")[:, None]
    angle = position * ops.convert_to_tensor(frequency.astype("float32"))
    return ops.where(ops.convert_to_tensor(channel % 2 == 0), ops.sin(angle), ops.cos(angle))


def sinusoidal_encoding_2d(
    height: int | Tensor, width: int | Tensor, channels: int, max_wavelength: float = 10000.0
) -> Tensor:
    """Encodes the row in the first half of the channels and the column in the second.

    Returns:
        Tensor `(height, width, channels)` in float32.
    """
    row_channels = (channels + 1) // 2
    rows = sinusoidal_encoding(height, row_channels, max_wavelength)
    columns = sinusoidal_encoding(width, channels - row_channels, max_wavelength)
    return ops.concatenate(
        [
            ops.broadcast_to(rows[:, None, :], (height, width, row_channels)),
            ops.broadcast_to(columns[None, :, :], (height, width, channels - row_channels)),
        ],
        axis=-1,
    )


def coordinates_2d(height: int | Tensor, width: int | Tensor) -> Tensor:
    """Gives each pixel its row and its column, from -1 to 1; the centre is 0.

    Returns:
        Tensor `(height, width, 2)` in float32.
    """
    rows = ops.broadcast_to(_coordinates(height)[:, None], (height, width))
    columns = ops.broadcast_to(_coordinates(width)[None, :], (height, width))
    return ops.stack([rows, columns], axis=-1)


def _coordinates(size):
    position = ops.cast(ops.arange(0, size, dtype="int32"), "float32")
    last = ops.cast(size - 1, "float32")
    return (2.0 * position - last) / ops.maximum(last, 1.0)
