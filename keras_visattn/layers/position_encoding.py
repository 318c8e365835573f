"""Absolute positions: sinusoids (Vaswani et al., 2017), coordinates (Liu et al., 2018)."""

from typing import Unpack

import keras
from keras import ops

from keras_visattn.layers.image_layer import ImageLayer
from keras_visattn.ops import checks
from keras_visattn.ops.position_encoding import (
    coordinates_2d,
    sinusoidal_encoding,
    sinusoidal_encoding_2d,
)
from keras_visattn.typing import ImageLayerArguments, Tensor


@keras.saving.register_keras_serializable(package="keras_visattn")
class SinusoidalPositionEncoding(ImageLayer):
    """Adds sines and cosines of the position to a sequence or to a map.

    `sin(t / max_wavelength ** (2 i / channels))` on channel `2 i`, the cosine on `2 i + 1`. On a
    map the first half of the channels encodes the row, the second half the column. Computed in
    float32, whatever the compute dtype.

    Args:
        max_wavelength: Number, the longest wavelength is `2 pi` times this.
        **kwargs: `data_format`, of maps; those of `keras.layers.Layer`.

    Input shape:
        `(batch, length, channels)`, or `(batch, height, width, channels)`, or
        `(batch, channels, height, width)` if `data_format="channels_first"`.

    Output shape:
        That of the input.

    Raises:
        ValueError: If `max_wavelength` is not positive, or the input has not three or four axes.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need", section 3.5
        (https://arxiv.org/abs/1706.03762).

    Examples:
        >>> layer = keras_visattn.layers.SinusoidalPositionEncoding()
        >>> keras.ops.shape(layer(keras.random.normal((2, 8, 6, 32))))
        (2, 8, 6, 32)
    """

    def __init__(
        self, max_wavelength: float = 10000.0, **kwargs: Unpack[ImageLayerArguments]
    ) -> None:
        super().__init__(**kwargs)
        self.max_wavelength = checks.positive_number("max_wavelength", max_wavelength)
        self.supports_masking = True

    def build(self, input_shape):
        self.compute_output_shape(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        inputs = self.floating(inputs)
        if len(inputs.shape) == 3:
            _, length, channels = ops.shape(inputs)
            encoding = sinusoidal_encoding(length, channels, self.max_wavelength)
            return inputs + ops.cast(encoding, inputs.dtype)
        x = self.to_channels_last(inputs)
        _, height, width, channels = ops.shape(x)
        encoding = sinusoidal_encoding_2d(height, width, channels, self.max_wavelength)
        return self.from_channels_last(x + ops.cast(encoding, inputs.dtype))

    def compute_output_shape(self, input_shape):
        shape = checks.rank("input_shape", input_shape, (3, 4))
        if len(shape) == 4:
            self.image_shape(shape)
        elif shape[-1] is None:
            raise ValueError(f"The number of channels must be known. Received: input_shape={shape}")
        return shape

    def get_config(self):
        return {**super().get_config(), "max_wavelength": self.max_wavelength}


@keras.saving.register_keras_serializable(package="keras_visattn")
class CoordinateChannels2D(ImageLayer):
    """Appends the row and the column of each pixel, from -1 to 1, as channels of the map.

    Args:
        with_radius: Boolean, whether to append the distance from the centre, too:
            `sqrt(row ** 2 + column ** 2)`.
        **kwargs: `data_format`, and those of `keras.layers.Layer`.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `data_format="channels_first"`.

    Output shape:
        That of the input, with 2 channels more, or 3 with the radius.

    Raises:
        ValueError: If the input has not four axes.

    Reference:
        Liu et al., 2018, "An Intriguing Failing of Convolutional Neural Networks and the CoordConv
        Solution", section 3 (https://arxiv.org/abs/1807.03247).

    Examples:
        >>> layer = keras_visattn.layers.CoordinateChannels2D()
        >>> keras.ops.shape(layer(keras.random.normal((2, 8, 6, 32))))
        (2, 8, 6, 34)
    """

    def __init__(self, with_radius: bool = False, **kwargs: Unpack[ImageLayerArguments]) -> None:
        super().__init__(**kwargs)
        self.with_radius = with_radius

    def build(self, input_shape):
        self.accept(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        x = self.to_channels_last(inputs)
        batch, height, width, _ = ops.shape(x)
        coordinates = coordinates_2d(height, width)
        if self.with_radius:
            radius = ops.sqrt(ops.sum(ops.square(coordinates), axis=-1, keepdims=True))
            coordinates = ops.concatenate([coordinates, radius], axis=-1)
        coordinates = ops.cast(coordinates, x.dtype)[None]
        coordinates = ops.broadcast_to(coordinates, (batch, *ops.shape(coordinates)[1:]))
        return self.from_channels_last(ops.concatenate([x, coordinates], axis=-1))

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = self.image_shape(input_shape)
        return self.output_shape_of(batch, height, width, channels + 2 + bool(self.with_radius))

    def get_config(self):
        return {**super().get_config(), "with_radius": self.with_radius}
