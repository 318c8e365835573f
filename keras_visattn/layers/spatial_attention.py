"""Spatial attention (Woo et al., 2018)."""

from typing import Unpack

import keras
from keras import ops

from keras_visattn.layers.image_layer import ImageGate
from keras_visattn.ops import checks, gating
from keras_visattn.typing import ImageGateArguments, IntOrPair, Tensor


@keras.saving.register_keras_serializable(package="keras_visattn")
class SpatialAttention(ImageGate):
    """Multiplies each pixel by a gate that a convolution computes from its pooled channels.

    `gate = sigmoid(conv([avg(x); max(x)]))`, pooled over the channels. The authors' code adds
    batch normalization after the convolution, and so does this layer.

    Args:
        kernel_size: Odd integer or pair, size of the convolution.
        use_bias: Boolean, whether the convolution has a bias.
        use_batch_norm: Boolean, whether batch normalization (epsilon 1e-5, momentum 0.99)
            follows the convolution.
        identity_start: Boolean. If `True`, the gate is `2 * sigmoid(...)` and its logits start at
            zero: a fresh layer returns its input exactly. Not in the paper.
        **kwargs: `data_format`; `kernel_initializer` and the other initializer, regularizer and
            constraint arguments of `keras.layers.Conv2D`; those of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor, a batch of maps.
        training: Boolean, whether batch normalization takes the batch's statistics.
        return_attention_scores: Boolean, whether to return the gate too.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `data_format="channels_first"`.

    Output shape:
        That of the input. The gate: `(batch, height, width, 1)` or `(batch, 1, height, width)`.

    Raises:
        ValueError: If `kernel_size` is not odd and positive, or the input has not four axes.

    Reference:
        Woo et al., 2018, "CBAM: Convolutional Block Attention Module", section 3
        (https://arxiv.org/abs/1807.06521).

    Examples:
        >>> layer = keras_visattn.layers.SpatialAttention(kernel_size=7)
        >>> keras.ops.shape(layer(keras.random.normal((2, 8, 6, 32))))
        (2, 8, 6, 32)
    """

    def __init__(
        self,
        kernel_size: IntOrPair = 7,
        use_bias: bool = False,
        use_batch_norm: bool = True,
        **kwargs: Unpack[ImageGateArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.kernel_size = checks.odd_window("kernel_size", kernel_size)
        self.use_bias = use_bias
        self.use_batch_norm = use_batch_norm

    def build(self, input_shape):
        self.accept(input_shape)
        kernel = self.kernel_arguments()
        if self.identity_start:
            kernel["bias_initializer"] = "zeros"
            if not self.use_batch_norm:
                kernel["kernel_initializer"] = "zeros"
        self.convolution = keras.layers.Conv2D(
            1,
            self.kernel_size,
            padding="same",
            use_bias=self.use_bias,
            data_format="channels_last",
            name="convolution",
            **kernel,
        )
        self.convolution.build((input_shape[0], None, None, 2))
        self.batch_norm = None
        if self.use_batch_norm:
            self.batch_norm = keras.layers.BatchNormalization(
                momentum=0.99,
                epsilon=1e-5,
                gamma_initializer="zeros" if self.identity_start else "ones",
                dtype=self.dtype_policy,
                name="batch_norm",
            )
            self.batch_norm.build((input_shape[0], None, None, 1))

    def gate(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Computes the gate alone, one value a pixel."""
        return self.pooled_gate(training)(inputs)

    def pooled_gate(self, training: bool | None = None) -> gating.PooledGate:
        """Gives the gate as what it makes of the pixels' pooled values."""

        def gate(mean, largest):
            logits = self.convolve(self.convolution, ops.stack([mean, largest], axis=-1))
            if self.batch_norm is not None:
                logits = self.batch_norm(logits, training=training)
            return self.from_channels_last(self.sigmoid(logits))

        return gating.PooledGate((self.channel_axis % 4,), ("avg", "max"), gate)

    def compute_scores_shape(self, input_shape):
        batch, height, width, _ = self.image_shape(input_shape)
        return self.output_shape_of(batch, height, width, 1)

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "use_bias": self.use_bias,
            "use_batch_norm": self.use_batch_norm,
        }
