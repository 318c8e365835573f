"""Channel attention (Woo et al., 2018)."""

import math

import keras
from keras import ops

from keras_visattn.layers.image_layer import ImageGate
from keras_visattn.ops import checks


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

    Example:
        >>> layer = keras_visattn.layers.ChannelAttention(reduction_ratio=4)
        >>> keras.ops.shape(layer(keras.random.normal((2, 8, 6, 32))))
        (2, 8, 6, 32)
    """

    def __init__(
        self,
        reduction_ratio=16,
        pooling=("avg", "max"),
        use_bias=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.reduction_ratio = checks.positive_integer("reduction_ratio", reduction_ratio)
        self.pooling = tuple(pooling) if isinstance(pooling, (tuple, list)) else (pooling,)
        for name in self.pooling:
            checks.choice("pooling", name, ("avg", "max", "lp", "lse"))
        if not self.pooling or len(set(self.pooling)) < len(self.pooling):
            raise ValueError(
                "`pooling` must name at least one pooling, and each once. "
                f"Received: pooling={pooling!r}"
            )
        self.use_bias = use_bias

    def build(self, input_shape):
        channels = self.accept(input_shape)
        hidden = max(1, channels // self.reduction_ratio)
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

    def gate(self, inputs, training=None):
        """Computes the gate alone, one value a channel. It is the same in training."""
        logits = sum(self.excite(self.squeeze(self._pool(inputs, name))) for name in self.pooling)
        return ops.expand_dims(self.sigmoid(logits), self.spatial_axes)

    def _pool(self, inputs, name):
        if name == "max":
            pooled = ops.max(inputs, axis=self.spatial_axes, initial=-math.inf)
            batch, channels = ops.shape(inputs)[0], inputs.shape[self.channel_axis]
            return ops.broadcast_to(pooled, (batch, channels))  # an empty batch's is a scalar
        wide = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        if name == "avg":
            pooled = ops.mean(wide, axis=self.spatial_axes)
        elif name == "lse":
            pooled = ops.logsumexp(wide, axis=self.spatial_axes)
        else:  # the root has no gradient at zero
            squares = ops.sum(ops.square(wide), axis=self.spatial_axes)
            pooled = ops.sqrt(ops.maximum(squares, 1e-12))
        return ops.cast(pooled, inputs.dtype)

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
