"""Squeeze and excitation (Hu et al., 2018)."""

from typing import Unpack

import keras

from keras_visattn.layers.channel_attention import ChannelAttention
from keras_visattn.layers.image_layer import ImageGate
from keras_visattn.ops import checks
from keras_visattn.typing import ImageGateArguments, Tensor


@keras.saving.register_keras_serializable(package="keras_visattn")
class SqueezeExcite(ImageGate):
    """Multiplies each channel by a gate computed from the averages of all channels.

    `gate = sigmoid(MLP(avg(x)))`. It is CBAM's channel gate with average pooling alone, and this
    layer holds that gate.

    Args:
        reduction_ratio: Integer, channels for each hidden unit of the MLP, which has at least one.
        use_bias: Boolean, whether the MLP has biases.
        identity_start: Boolean. If `True`, the gate is `2 * sigmoid(...)` and the last layer of
            the MLP starts at zero: a fresh layer returns its input exactly. Not in the paper.
        **kwargs: `data_format`; `kernel_initializer` and the other initializer, regularizer and
            constraint arguments of `keras.layers.Dense`; those of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor, a batch of maps.
        return_attention_scores: Boolean, whether to return the gate too.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `data_format="channels_first"`.

    Output shape:
        That of the input. The gate: `(batch, 1, 1, channels)` or `(batch, channels, 1, 1)`.

    Raises:
        ValueError: If `reduction_ratio` is not positive, or the input has not four axes.

    Reference:
        Hu et al., 2018, "Squeeze-and-Excitation Networks", section 3
        (https://arxiv.org/abs/1709.01507).

    Examples:
        >>> layer = keras_visattn.layers.SqueezeExcite()
        >>> keras.ops.shape(layer(keras.random.normal((2, 8, 6, 32))))
        (2, 8, 6, 32)
    """

    def __init__(
        self, reduction_ratio: int = 16, use_bias: bool = True, **kwargs: Unpack[ImageGateArguments]
    ) -> None:
        super().__init__(**kwargs)
        self.reduction_ratio = checks.positive_integer("reduction_ratio", reduction_ratio)
        self.use_bias = use_bias
        self.channel_attention = ChannelAttention(
            reduction_ratio,
            pooling=("avg",),
            use_bias=use_bias,
            identity_start=self.identity_start,
            data_format=self.data_format,
            name="channel",
            **self.kernel_arguments(),
        )

    def build(self, input_shape):
        self.accept(input_shape)
        self.channel_attention.build(input_shape)

    def gate(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Computes the gate alone, one value a channel."""
        return self.channel_attention.gate(inputs)

    def compute_scores_shape(self, input_shape):
        return self.channel_attention.compute_scores_shape(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "reduction_ratio": self.reduction_ratio,
            "use_bias": self.use_bias,
        }
