"""Global and local attention (Linsley et al., 2018)."""

from typing import Unpack

import keras
from keras import ops

from keras_visattn.layers.image_layer import ImageGate
from keras_visattn.ops import checks
from keras_visattn.typing import ImageGateArguments, Tensor


@keras.saving.register_keras_serializable(package="keras_visattn")
class GALA(ImageGate):
    """Multiplies a map by a gate that mixes a global (channel) and a local (pixel) saliency.

    `gate = 1 + tanh(a * (g + s) + m * (g * s))`. The global `g`, one value a channel, is an MLP
    of the averages; the local `s`, one value a pixel, is two 1x1 convolutions; `a` and `m` are
    learnt, a value a channel each. The whole layer is written from memory of the paper: the
    form of the mixture and the range (0, 2) of the gate, the ReLU of the inner layers, and that
    `a` and `m` start at one.

    Args:
        reduction_ratio: Integer, channels for each inner channel of both paths, which have at
            least one.
        identity_start: Boolean. If `True`, `a` and `m` start at zero: a fresh layer returns its
            input exactly. Not in the paper.
        **kwargs: `data_format`; `kernel_initializer` and the other initializer, regularizer and
            constraint arguments of `keras.layers.Conv2D`; those of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor, a batch of maps.
        return_attention_scores: Boolean, whether to return the gate too.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `data_format="channels_first"`.

    Output shape:
        That of the input, and so is the gate's.

    Raises:
        ValueError: If `reduction_ratio` is not positive, or the input has not four axes.

    Reference:
        Linsley et al., 2018, "Learning what and where to attend", section 3
        (https://arxiv.org/abs/1805.08819).

    Examples:
        >>> layer = keras_visattn.layers.GALA()
        >>> keras.ops.shape(layer(keras.random.normal((2, 8, 6, 32))))
        (2, 8, 6, 32)
    """

    def __init__(self, reduction_ratio: int = 16, **kwargs: Unpack[ImageGateArguments]) -> None:
        super().__init__(**kwargs)
        self.reduction_ratio = checks.positive_integer("reduction_ratio", reduction_ratio)

    def build(self, input_shape):
        channels = self.accept(input_shape)
        batch = input_shape[0]
        hidden = max(1, channels // self.reduction_ratio)
        checks.weight("`reduction_ratio`", channels, hidden)
        pixels, hidden_pixels = (batch, None, None, channels), (batch, None, None, hidden)
        self.squeeze = self._dense("squeeze", hidden, (batch, channels), "relu")
        self.excite = self._dense("excite", channels, (batch, hidden))
        self.shrink = self._dense("shrink", hidden, pixels, "relu")
        self.collapse = self._dense("collapse", 1, hidden_pixels)
        start = "zeros" if self.identity_start else "ones"
        self.sum_scale = self.add_weight(name="sum_scale", shape=(channels,), initializer=start)
        self.product_scale = self.add_weight(
            name="product_scale", shape=(channels,), initializer=start
        )

    def _dense(self, name, units, input_shape, activation=None):
        dense = keras.layers.Dense(
            units, activation=activation, name=name, **self.kernel_arguments()
        )
        dense.build(input_shape)
        return dense

    def gate(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Computes the gate alone, one value a pixel and channel."""
        x = self.to_channels_last(inputs)
        channel = self.excite(self.squeeze(ops.mean(x, axis=(1, 2))))[:, None, None, :]
        pixel = self.collapse(self.shrink(x))
        mixture = self.sum_scale * (channel + pixel) + self.product_scale * (channel * pixel)
        return self.from_channels_last(1 + ops.tanh(mixture))

    def compute_scores_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "reduction_ratio": self.reduction_ratio}
