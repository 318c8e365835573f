"""Attention augmented convolution (Bello et al., 2019)."""

from typing import Literal, Unpack

import keras
from keras import ops

from keras_visattn.layers.image_layer import ImageAttention
from keras_visattn.layers.position_encoding import (
    CoordinateChannels2D,
    SinusoidalPositionEncoding,
)
from keras_visattn.layers.relative_position_embedding2d import RelativePositionEmbedding2D
from keras_visattn.ops import checks
from keras_visattn.ops.attention import attention
from keras_visattn.ops.heads import flatten_pixels, heads_first, split_heads
from keras_visattn.ops.interpolation import resize_linear
from keras_visattn.ops.windows import average_pool_2d, output_length, window_spans
from keras_visattn.typing import ImageAttentionArguments, IntOrPair, Outputs, Padding, Shape, Tensor

POSITIONS = ("relative", "sinusoidal", "coordinates", None)


@keras.saving.register_keras_serializable(package="keras_visattn")
class AugmentedConv2D(ImageAttention):
    """Concatenates a convolution with self-attention over the whole map.

    `[conv(x); heads @ W_O]`, each head `softmax((Q K^T + S_H + S_W) / sqrt(d)) V`, with the
    relative logits of rows and columns `S_H`, `S_W`. The convolution has `filters - d_v` channels,
    none if the values take them all. Where the convolution is strided, the attention sees the
    average of `2 * strides - 1` pixels a side; where it is `"valid"`, the centres of its windows.

    Args:
        filters: Integer, number of output channels.
        kernel_size: Integer or pair, size of the convolution.
        key_ratio: Float in [0, 1], key channels for each output channel: over all heads,
            `max(floor(key_ratio * filters / num_heads), min_key_dim) * num_heads`. Defaults to 0.2
            unless `total_key_dim` is given.
        value_ratio: Float in [0, 1], value channels for each output channel: over all heads,
            `floor(value_ratio * filters / num_heads) * num_heads`. Defaults to 0.1 unless
            `total_value_dim` is given.
        total_key_dim: Integer, key channels of all heads, instead of `key_ratio`.
        total_value_dim: Integer, value channels of all heads, instead of `value_ratio`.
        num_heads: Integer, number of heads.
        min_key_dim: Integer, the fewest key channels a head that `key_ratio` may give.
        strides: Integer, stride of the layer.
        dilation_rate: Integer or pair, dilation of the convolution.
        padding: `"same"` or `"valid"`.
        position: `"relative"`; `"sinusoidal"` or `"coordinates"`, which the attention's input
            gets added or appended; or `None`.
        attention_pool: Integer, how often the attention's map is coarser than the output: its
            input is averaged by `2 * attention_pool - 1` pixels a side, its output interpolated.
        max_height: Integer, height that the relative tables serve. Defaults to the map's at build.
        max_width: Integer, width that the relative tables serve. Defaults to the map's at build.
        use_bias: Boolean, whether the convolution and the projections have biases. The paper
            lets batch normalization follow, and has none.
        **kwargs: `data_format`; `kernel_initializer` and the other initializer, regularizer and
            constraint arguments of `keras.layers.Conv2D`; those of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor, a batch of maps.
        return_attention_scores: Boolean, whether to return the scores too.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `data_format="channels_first"`.

    Output shape:
        `(batch, new height, new width, filters)`, or with the channels first. The scores:
        `(batch, num_heads, T, T)`, with `T` the pixels of the attention's map.

    Raises:
        ValueError: If a ratio is outside [0, 1] or leaves a head without values, a depth does not
            divide by the heads or exceeds `filters`, a ratio and its depth are both given, a size
            is not positive, `padding` or `position` is unknown, or the input has not four axes.

    Reference:
        Bello et al., 2019, "Attention Augmented Convolutional Networks", section 3
        (https://arxiv.org/abs/1904.09925).

    Examples:
        >>> layer = keras_visattn.layers.AugmentedConv2D(128, 3)
        >>> keras.ops.shape(layer(keras.random.normal((2, 8, 6, 32))))
        (2, 8, 6, 128)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: IntOrPair,
        key_ratio: float | None = None,
        value_ratio: float | None = None,
        total_key_dim: int | None = None,
        total_value_dim: int | None = None,
        num_heads: int = 8,
        min_key_dim: int = 20,
        strides: int = 1,
        dilation_rate: IntOrPair = 1,
        padding: Padding = "same",
        position: Literal["relative", "sinusoidal", "coordinates"] | None = "relative",
        attention_pool: int = 1,
        max_height: int | None = None,
        max_width: int | None = None,
        use_bias: bool = False,
        **kwargs: Unpack[ImageAttentionArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.filters = checks.positive_integer("filters", filters)
        self.kernel_size = checks.window("kernel_size", kernel_size)
        self.num_heads = checks.positive_integer("num_heads", num_heads)
        self.min_key_dim = checks.positive_integer("min_key_dim", min_key_dim)
        self.strides = checks.positive_integer("strides", strides)
        self.dilation_rate = checks.window("dilation_rate", dilation_rate)
        self.padding = checks.choice("padding", padding, ("same", "valid"))
        self.position = checks.choice("position", position, POSITIONS)
        self.attention_pool = checks.positive_integer("attention_pool", attention_pool)
        self.max_height = max_height
        self.max_width = max_width
        self.use_bias = use_bias
        self.key_ratio = key_ratio
        self.value_ratio = value_ratio
        self.total_key_dim = total_key_dim
        self.total_value_dim = total_value_dim
        self.key_dim = self._head_size("key", total_key_dim, key_ratio, 0.2, self.min_key_dim)
        self.value_dim = self._head_size("value", total_value_dim, value_ratio, 0.1, 0)
        if self.value_dim == 0 or self.value_dim * self.num_heads > self.filters:
            raise ValueError(
                "The values must have at least one channel a head and at most `filters` in all. "
                f"Received: value_ratio={value_ratio}, total_value_dim={total_value_dim}, "
                f"num_heads={num_heads}, filters={filters}"
            )
        if self.strides > 1 and self.dilation_rate != (1, 1):
            raise ValueError(
                "`strides` or `dilation_rate` must be 1. "
                f"Received: strides={strides}, dilation_rate={dilation_rate}"
            )
        self.encoding = self.position_embedding = None
        if position == "relative":
            self.position_embedding = RelativePositionEmbedding2D(
                max_height, max_width, dtype=self.dtype_policy, name="position"
            )
        elif position is not None:
            encodings = {
                "sinusoidal": SinusoidalPositionEncoding,
                "coordinates": CoordinateChannels2D,
            }
            self.encoding = encodings[position](
                data_format="channels_last", dtype=self.dtype_policy, name="position"
            )

    def _head_size(self, role, total, ratio, default_ratio, at_least):
        """Applies the paper's rule for the channels of a head."""
        if total is None:
            ratio = checks.fraction(f"{role}_ratio", default_ratio if ratio is None else ratio)
            return max(int(ratio * self.filters + 1e-9) // self.num_heads, at_least)
        if ratio is not None:
            raise ValueError(
                f"`{role}_ratio` or `total_{role}_dim` must be None. "
                f"Received: {role}_ratio={ratio}, total_{role}_dim={total}"
            )
        checks.positive_integer(f"total_{role}_dim", total)
        checks.divides("num_heads", self.num_heads, f"total_{role}_dim", total)
        return total // self.num_heads

    def build(self, input_shape):
        channels = self.accept(input_shape)
        batch, height, width, _ = self.image_shape(input_shape)
        self._output_size(height, width)
        keys, values = self.num_heads * self.key_dim, self.num_heads * self.value_dim
        checks.weight("`kernel_size` and `filters`", *self.kernel_size, channels, self.filters)
        widths = "`total_key_dim` and `total_value_dim`"
        checks.weight(widths, channels + 2, 2 * keys + values)
        self.convolution = None
        if self.filters > values:
            self.convolution = keras.layers.Conv2D(
                self.filters - values,
                self.kernel_size,
                strides=self.strides,
                padding=self.padding,
                dilation_rate=self.dilation_rate,
                use_bias=self.use_bias,
                data_format="channels_last",
                name="convolution",
                **self.kernel_arguments(),
            )
            self.convolution.build((batch, height, width, channels))
        if self.position == "coordinates":
            channels += 2
        self.projection = self._dense("projection", 2 * keys + values)
        self.projection.build((batch, None, None, channels))
        self.combination = self._dense("combination", values)
        self.combination.build((batch, None, None, values))
        if self.position_embedding is not None:
            height, width = self.attention_size(height, width)
            self.position_embedding.build((batch, height, width, self.num_heads, self.key_dim))

    def _dense(self, name, units):
        return keras.layers.Dense(
            units, use_bias=self.use_bias, name=name, **self.kernel_arguments()
        )

    def call(self, inputs: Tensor, return_attention_scores: bool = False) -> Outputs:
        x = self.to_channels_last(inputs)
        outputs, scores = self._attend(x, return_attention_scores)
        if self.convolution is not None:
            outputs = ops.concatenate([self.convolve(self.convolution, x), outputs], axis=-1)
        outputs = self.from_channels_last(outputs)
        return (outputs, scores) if return_attention_scores else outputs

    def _attend(self, x, return_scores):
        x = self._convolved_pixels(x)
        _, height, width, _ = ops.shape(x)
        x = average_pool_2d(x, 2 * self.attention_pool - 1, self.attention_pool)
        if self.encoding is not None:
            x = self.encoding(x)
        keys, values = self.num_heads * self.key_dim, self.num_heads * self.value_dim
        parts = split_heads(self.projection(x), self.num_heads, [keys, keys, values])
        query, key, value = (flatten_pixels(heads_first(part)) for part in parts)
        terms = None
        if self.position_embedding is not None:
            terms = self.position_embedding.row_and_column_logits(parts[0])
            terms = [flatten_pixels(x) for x in terms]
        outputs = attention(
            *(query, key, value),
            relative_logits=terms,
            scale=self.key_dim**-0.5,
            return_scores=return_scores,
        )
        outputs, scores = outputs if return_scores else (outputs, None)
        outputs = ops.swapaxes(outputs, 1, 2)
        outputs = ops.reshape(outputs, (*ops.shape(x)[:3], values))
        outputs = self.combination(outputs)
        if self.attention_pool > 1:
            outputs = resize_linear(resize_linear(outputs, height, 1), width, 2)
        return outputs, scores

    def _convolved_pixels(self, x):
        """Gives the attention a pixel for each output of the convolution."""
        if self.padding == "valid":
            _, height, width, _ = ops.shape(x)
            spans = window_spans(self.kernel_size, self.dilation_rate)
            top, left = (span // 2 for span in spans)
            x = x[:, top : top + height - spans[0], left : left + width - spans[1]]
        return average_pool_2d(x, 2 * self.strides - 1, self.strides)

    def _output_size(self, height, width):
        spans = window_spans(self.kernel_size, self.dilation_rate)
        return tuple(
            output_length(length, span, self.strides, self.padding)
            for length, span in zip((height, width), spans, strict=True)
        )

    def attention_size(self, height: int | None, width: int | None) -> Shape:
        """Gives the size of the map that is attended over, for an image of a size."""
        return tuple(
            output_length(length, 0, self.attention_pool, "same")
            for length in self._output_size(height, width)
        )

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = self.image_shape(input_shape)
        return self.output_shape_of(batch, *self._output_size(height, width), self.filters)

    def compute_scores_shape(self, input_shape):
        batch, height, width, _ = self.image_shape(input_shape)
        height, width = self.attention_size(height, width)
        pixels = None if None in (height, width) else height * width
        return (batch, self.num_heads, pixels, pixels)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "key_ratio": self.key_ratio,
            "value_ratio": self.value_ratio,
            "total_key_dim": self.total_key_dim,
            "total_value_dim": self.total_value_dim,
            "num_heads": self.num_heads,
            "min_key_dim": self.min_key_dim,
            "strides": self.strides,
            "dilation_rate": self.dilation_rate,
            "padding": self.padding,
            "position": self.position,
            "attention_pool": self.attention_pool,
            "max_height": self.max_height,
            "max_width": self.max_width,
            "use_bias": self.use_bias,
        }
