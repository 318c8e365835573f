"""Bottleneck attention (Park et al., 2018)."""

from typing import Unpack

import keras
from keras import ops

from keras_visattn.layers.image_layer import ImageGate
from keras_visattn.ops import checks
from keras_visattn.typing import ImageGateArguments, IntOrPair, Tensor


@keras.saving.register_keras_serializable(package="keras_visattn")
class BAM(ImageGate):
    """Adds to a map its product with a gate of a channel branch and a spatial branch.

    `y = x + x * sigmoid(channel(x) + spatial(x))`. The channel branch is an MLP of the averages,
    the spatial branch a 1x1, two dilated 3x3 and a 1x1 convolution; batch normalization ends
    both. It goes between the stages of a network. The ReLUs between the layers are from memory
    of the authors' code, which also normalizes the inner layers; the paper's equations do not,
    nor does this layer.

    Args:
        reduction_ratio: Integer, channels for each inner channel of both branches, which have at
            least one.
        dilation_rate: Integer or pair, dilation of the 3x3 convolutions.
        identity_start: Boolean. If `True`, the gate is `2 * sigmoid(...)`, without the sum with
            the input, and its logits start at zero: a fresh layer returns its input exactly. Not
            in the paper.
        **kwargs: `data_format`; `kernel_initializer` and the other initializer, regularizer and
            constraint arguments of `keras.layers.Conv2D`; those of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor, a batch of maps.
        training: Boolean, whether batch normalization takes the batch's statistics.
        return_attention_scores: Boolean, whether to return the factor of the input too.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `data_format="channels_first"`.

    Output shape:
        That of the input, and so is the factor's.

    Raises:
        ValueError: If `reduction_ratio` or `dilation_rate` is not positive, or the input has not
            four axes.

    Reference:
        Park et al., 2018, "BAM: Bottleneck Attention Module", section 3
        (https://arxiv.org/abs/1807.06514).

    Examples:
        >>> layer = keras_visattn.layers.BAM()
        >>> keras.ops.shape(layer(keras.random.normal((2, 8, 6, 32))))
        (2, 8, 6, 32)
    """

    def __init__(
        self,
        reduction_ratio: int = 16,
        dilation_rate: IntOrPair = 4,
        **kwargs: Unpack[ImageGateArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.reduction_ratio = checks.positive_integer("reduction_ratio", reduction_ratio)
        self.dilation_rate = checks.window("dilation_rate", dilation_rate)

    def build(self, input_shape):
        channels = self.accept(input_shape)
        batch = input_shape[0]
        hidden = max(1, channels // self.reduction_ratio)
        checks.weight("`reduction_ratio`", 9, max(channels, hidden), hidden)
        self.squeeze = keras.layers.Dense(
            hidden, activation="relu", name="squeeze", **self.kernel_arguments()
        )
        self.excite = keras.layers.Dense(channels, name="excite", **self.kernel_arguments())
        self.squeeze.build((batch, channels))
        self.excite.build((batch, hidden))
        self.channel_norm = self._batch_norm("channel_norm", (batch, channels))

        self.convolutions = []
        sizes = [(hidden, 1, 1), (hidden, 3, self.dilation_rate), (hidden, 3, self.dilation_rate)]
        for index, (filters, kernel_size, dilation_rate) in enumerate([*sizes, (1, 1, 1)]):
            convolution = keras.layers.Conv2D(
                filters,
                kernel_size,
                dilation_rate=dilation_rate,
                padding="same",
                activation="relu" if index < len(sizes) else None,
                data_format="channels_last",
                name=f"spatial_{index}",
                **self.kernel_arguments(),
            )
            convolution.build((batch, None, None, hidden if index else channels))
            self.convolutions.append(convolution)
        self.spatial_norm = self._batch_norm("spatial_norm", (batch, None, None, 1))

    def _batch_norm(self, name, shape):
        batch_norm = keras.layers.BatchNormalization(
            gamma_initializer="zeros" if self.identity_start else "ones",
            epsilon=1e-5,
            dtype=self.dtype_policy,
            name=name,
        )
        batch_norm.build(shape)
        return batch_norm

    def gate(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Computes the factor of the input: one and the gate."""
        x = self.to_channels_last(inputs)
        channel = self.excite(self.squeeze(ops.mean(x, axis=(1, 2))))
        channel = self.channel_norm(channel, training=training)
        for convolution in self.convolutions:
            x = self.convolve(convolution, x)
        logits = channel[:, None, None, :] + self.spatial_norm(x, training=training)
        gate = self.from_channels_last(self.sigmoid(logits))
        return gate if self.identity_start else 1 + gate

    def compute_scores_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "reduction_ratio": self.reduction_ratio,
            "dilation_rate": self.dilation_rate,
        }
