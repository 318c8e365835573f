"""Channel attention (Woo et al., 2018)."""

from collections.abc import Sequence
from typing import Unpack

import keras
from keras import ops

from keras_visattn.layers.image_layer import ImageGate
from keras_visattn.ops import checks, gating
from keras_visattn.typing import ImageGateArguments, Pooling, Tensor


@keras.saving.register_keras_serializable(package="keras_visattn")
class ChannelAttention(ImageGate):
    """Multiplies each channel by a gate that one shared MLP computes from its pooled values.

    `gate = sigmoid(MLP(avg(x)) + MLP(max(x)))`, where the MLP has one hidden layer of
    `max(1, channels // reduction_ratio)` units (so at least one) with a ReLU.

    Args:
        reduction_ratio: Integer, channels for each hidden unit of the MLP.
        pooling: Tuple of the poolings over all pixels: `"avg"`, `"max"`, `"lp"` (the square root
            of the sum of squares) and `"lse"` (the logarithm of the sum of exponentials). The
            last two are from the authors' code.
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
        ValueError: If `reduction_ratio` is not positive, a pooling is unknown or named twice, or
            the input has not four axes.

    Reference:
        Woo et al., 2018, "CBAM: Convolutional Block Attention Module", section 3
        (https://arxiv.org/abs/1807.06521).

    Examples:
        >>> layer = keras_visattn.layers.ChannelAttention(reduction_ratio=4)
        >>> keras.ops.shape(layer(keras.random.normal((2, 8, 6, 32))))
        (2, 8, 6, 32)
    """

    def __init__(
        self,
        reduction_ratio: int = 16,
        pooling: Sequence[Pooling] = ("avg", "max"),
        use_bias: bool = True,
        **kwargs: Unpack[ImageGateArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.reduction_ratio = checks.positive_integer("reduction_ratio", reduction_ratio)
        self.pooling = tuple(pooling) if isinstance(pooling, (tuple, list)) else (pooling,)
        for name in self.pooling:
            checks.choice("pooling", name, gating.POOLINGS)
        if not self.pooling or len(set(self.pooling)) < len(self.pooling):
            raise ValueError(
                "`pooling` must name at least one pooling, and each once. "
                f"Received: pooling={pooling!r}"
            )
        self.use_bias = use_bias

    def build(self, input_shape):
        channels = self.accept(input_shape)
        hidden = max(1, channels // self.reduction_ratio)
        checks.weight("`reduction_ratio`", channels, hidden)
        last = self.kernel_arguments()
        if self.identity_start:
            last.update(kernel_initializer="zeros", bias_initializer="zeros")
        self.squeeze = keras.layers.Dense(
            hidden,
            activation="relu",
            use_bias=self.use_bias,
            name="squeeze",
            **self.kernel_arguments(),
        )
        self.excite = keras.layers.Dense(channels, use_bias=self.use_bias, name="excite", **last)
        self.squeeze.build((input_shape[0], channels))
        self.excite.build((input_shape[0], hidden))

    def gate(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Computes the gate alone, one value a channel. It is the same in training."""
        return self.pooled_gate()(inputs)

    def pooled_gate(self, training: bool | None = None) -> gating.PooledGate:
        """Gives the gate as what it makes of the channels' pooled values."""

        def gate(*pooled):
            logits = sum(self.excite(self.squeeze(x)) for x in pooled)
            return ops.expand_dims(self.sigmoid(logits), self.spatial_axes)

        return gating.PooledGate(self.spatial_axes, self.pooling, gate)

    def compute_scores_shape(self, input_shape):
        batch, _, _, channels = self.image_shape(input_shape)
        return self.output_shape_of(batch, 1, 1, channels)

    def get_config(self):
        return {
            **super().get_config(),
            "reduction_ratio": self.reduction_ratio,
            "pooling": self.pooling,
            "use_bias": self.use_bias,
        }
