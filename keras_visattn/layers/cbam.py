"""Convolutional block attention: channel, then spatial gates (Woo et al., 2018)."""

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import keras

from keras_visattn.layers.channel_attention import ChannelAttention
from keras_visattn.layers.image_layer import ImageAttention, ImageGate
from keras_visattn.layers.spatial_attention import SpatialAttention
from keras_visattn.ops import checks, gating
from keras_visattn.typing import (
    ImageAttentionArguments,
    IntOrPair,
    Outputs,
    Pooling,
    Tensor,
)


@keras.saving.register_keras_serializable(package="keras_visattn")
class CBAM(ImageAttention):
    """Refines a map by a channel gate, then by a spatial gate of the map so refined.

    `y = channel_gate(x) * x`, then `spatial_gate(y) * y`. It goes at the end of a residual
    block, before the addition.

    Args:
        reduction_ratio: Integer, channels for each hidden unit of the channel gate's MLP, which
            has at least one.
        kernel_size: Odd integer or pair, size of the spatial gate's convolution.
        pooling: Tuple, the poolings of the channel gate, as in `ChannelAttention`.
        order: `"channel_first"`, `"spatial_first"`, or `"parallel"`, where both gates see the
            input and their product multiplies it.
        channel: Boolean, whether there is a channel gate.
        spatial: Boolean, whether there is a spatial gate.
        use_bias: Boolean, whether the MLP has biases. The convolution has none.
        use_batch_norm: Boolean, whether batch normalization follows the convolution.
        identity_start: Boolean. If `True`, a fresh layer returns its input exactly, so that it
            can be put into a trained network. Not in the paper.
        **kwargs: `data_format`; `kernel_initializer` and the other initializer, regularizer and
            constraint arguments of `keras.layers.Conv2D`; those of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor, a batch of maps.
        training: Boolean, whether batch normalization takes the batch's statistics.
        return_attention_scores: Boolean, whether to return the gates too.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `data_format="channels_first"`.

    Output shape:
        That of the input. The gates: a dictionary with `"channel"` and `"spatial"`, each as in
        its own layer, without the one that is switched off.

    Raises:
        ValueError: If both gates are switched off, `order` is unknown, or an argument is refused
            by `ChannelAttention` or `SpatialAttention`.

    Reference:
        Woo et al., 2018, "CBAM: Convolutional Block Attention Module", section 3
        (https://arxiv.org/abs/1807.06521).

    Examples:
        >>> layer = keras_visattn.layers.CBAM()
        >>> keras.ops.shape(layer(keras.random.normal((2, 8, 6, 32))))
        (2, 8, 6, 32)
    """

    def __init__(
        self,
        reduction_ratio: int = 16,
        kernel_size: IntOrPair = 7,
        pooling: Sequence[Pooling] = ("avg", "max"),
        order: Literal["channel_first", "spatial_first", "parallel"] = "channel_first",
        channel: bool = True,
        spatial: bool = True,
        use_bias: bool = True,
        use_batch_norm: bool = True,
        identity_start: bool = False,
        **kwargs: Unpack[ImageAttentionArguments],
    ) -> None:
        super().__init__(**kwargs)
        if not (channel or spatial):
            raise ValueError(
                "`channel` or `spatial` must be true. "
                f"Received: channel={channel}, spatial={spatial}"
            )
        self.reduction_ratio = checks.positive_integer("reduction_ratio", reduction_ratio)
        self.kernel_size = checks.odd_window("kernel_size", kernel_size)
        self.pooling = pooling
        self.order = checks.choice("order", order, ("channel_first", "spatial_first", "parallel"))
        self.channel = channel
        self.spatial = spatial
        self.use_bias = use_bias
        self.use_batch_norm = use_batch_norm
        self.identity_start = identity_start
        shared: dict[str, Any] = {
            "identity_start": identity_start,
            "data_format": self.data_format,
        }
        self.channel_attention = self.spatial_attention = None
        if channel:
            self.channel_attention = ChannelAttention(
                reduction_ratio,
                pooling,
                use_bias,
                name="channel",
                **shared,
                **self.kernel_arguments(),
            )
        if spatial:
            self.spatial_attention = SpatialAttention(
                kernel_size,
                use_batch_norm=use_batch_norm,
                name="spatial",
                **shared,
                **self.kernel_arguments(),
            )

    @property
    def gates(self) -> dict[str, ImageGate]:
        """The gate layers by name, in the order in which they apply."""
        gates = {"channel": self.channel_attention, "spatial": self.spatial_attention}
        if self.order == "spatial_first":
            gates = dict(reversed(gates.items()))
        return {name: layer for name, layer in gates.items() if layer is not None}

    def build(self, input_shape):
        self.accept(input_shape)
        for layer in self.gates.values():
            layer.build(input_shape)

    def call(
        self, inputs: Tensor, training: bool | None = None, return_attention_scores: bool = False
    ) -> Outputs:
        gates = [layer.pooled_gate(training) for layer in self.gates.values()]
        outputs, scores = gating.refine(
            self.floating(inputs), gates, parallel=self.order == "parallel"
        )
        scores = dict(zip(self.gates, scores, strict=True))
        return (outputs, scores) if return_attention_scores else outputs

    def compute_output_shape(self, input_shape):
        self.image_shape(input_shape)
        return tuple(input_shape)

    def compute_scores_shape(self, input_shape):
        return {name: layer.compute_scores_shape(input_shape) for name, layer in self.gates.items()}

    def get_config(self):
        return {
            **super().get_config(),
            "reduction_ratio": self.reduction_ratio,
            "kernel_size": self.kernel_size,
            "pooling": self.pooling,
            "order": self.order,
            "channel": self.channel,
            "spatial": self.spatial,
            "use_bias": self.use_bias,
            "use_batch_norm": self.use_batch_norm,
            "identity_start": self.identity_start,
        }
