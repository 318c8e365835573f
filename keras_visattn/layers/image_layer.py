"""What the layers on images share: the data format, scores, gates."""

from typing import Any, Unpack

import keras
from keras import ops

from keras_visattn.layers.kernel_layer import KernelLayer
from keras_visattn.ops import checks
from keras_visattn.typing import DataFormat, ImageAttentionArguments, Outputs, Tensor


class ImageLayer(keras.layers.Layer):
    """Abstract layer on `(batch, height, width, channels)`, or with the channels first.

    Args:
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        **kwargs: Keyword arguments of `keras.layers.Layer`.
    """

    def __init__(self, *, data_format: DataFormat | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if data_format is None:
            data_format = keras.config.image_data_format()
        checks.choice("data_format", data_format, ("channels_last", "channels_first"))
        self.data_format = data_format

    @property
    def channel_axis(self):
        return -1 if self.data_format == "channels_last" else 1

    @property
    def spatial_axes(self):
        return (1, 2) if self.data_format == "channels_last" else (2, 3)

    def image_shape(self, input_shape):
        """Checks an input's shape and gives it as (batch, height, width, channels)."""
        shape = checks.rank("input_shape", input_shape, (4,))
        channels = shape[self.channel_axis]
        if channels is None:
            raise ValueError(
                "The number of channels must be known. "
                f"Received: input_shape={shape}, data_format={self.data_format!r}"
            )
        return (shape[0], *(shape[axis] for axis in self.spatial_axes), channels)

    def output_shape_of(self, batch, height, width, channels):
        """Gives a shape in the layer's data format."""
        if self.data_format == "channels_first":
            return (batch, channels, height, width)
        return (batch, height, width, channels)

    def accept(self, input_shape):
        """Makes the layer refuse inputs of another rank or another number of channels."""
        channels = self.image_shape(input_shape)[-1]
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={self.channel_axis: channels})
        return channels

    def floating(self, x):
        """Casts integers, such as the bytes of an image; Keras has cast other numbers."""
        return ops.cast(x, self.compute_dtype)

    def to_channels_last(self, x):
        x = self.floating(x)
        return x if self.data_format == "channels_last" else ops.transpose(x, (0, 2, 3, 1))

    def from_channels_last(self, x):
        return x if self.data_format == "channels_last" else ops.transpose(x, (0, 3, 1, 2))

    def convolve(self, convolution, x):
        """Convolves a batch; TensorFlow's convolution keeps the channels of one without images."""
        if x.shape[0] == 0:
            return ops.zeros(convolution.compute_output_shape(x.shape), x.dtype)
        return convolution(x)

    def get_config(self):
        return {**super().get_config(), "data_format": self.data_format}


class ImageAttention(KernelLayer, ImageLayer):
    """Abstract layer that weighs an image by attention, and can return the attention scores.

    Args:
        **kwargs: Those of `KernelLayer` and of `ImageLayer`.
    """

    def compute_scores_shape(self, input_shape):
        """Gives the shape of the attention scores, or a dictionary of shapes."""
        raise NotImplementedError

    def compute_output_spec(self, inputs, return_attention_scores=False, training=None):
        outputs = self._spec(self.compute_output_shape(inputs.shape))
        if not return_attention_scores:
            return outputs
        scores = self.compute_scores_shape(inputs.shape)
        if isinstance(scores, dict):
            return outputs, {name: self._spec(shape) for name, shape in scores.items()}
        return outputs, self._spec(scores)

    def _spec(self, shape):
        return keras.KerasTensor(shape, dtype=self.compute_dtype)


class ImageGate(ImageAttention):
    """Abstract layer that multiplies an image by a gate, `gate(inputs)`, its attention scores.

    Args:
        identity_start: Boolean. If `True`, a fresh layer returns its input exactly, so that it
            can be put into a trained network: the gate is twice the sigmoid of logits that
            start at zero.
        **kwargs: Those of `ImageAttention`.
    """

    def __init__(
        self, *, identity_start: bool = False, **kwargs: Unpack[ImageAttentionArguments]
    ) -> None:
        super().__init__(**kwargs)
        self.identity_start = identity_start

    def gate(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Computes the gate alone, in a shape that broadcasts to the input's."""
        raise NotImplementedError

    def call(
        self, inputs: Tensor, training: bool | None = None, return_attention_scores: bool = False
    ) -> Outputs:
        inputs = self.floating(inputs)
        gate = self.gate(inputs, training=training)
        return (inputs * gate, gate) if return_attention_scores else inputs * gate

    def sigmoid(self, logits):
        gate = ops.sigmoid(logits)
        return 2 * gate if self.identity_start else gate

    def compute_output_shape(self, input_shape):
        self.image_shape(input_shape)
        return tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "identity_start": self.identity_start}
