"""Stand-alone self-attention in a window around each pixel (Ramachandran et al., 2019)."""

from typing import Literal, Unpack

import keras
from keras import ops

from keras_visattn.layers.image_layer import ImageAttention
from keras_visattn.layers.position_encoding import SinusoidalPositionEncoding
from keras_visattn.ops import checks
from keras_visattn.ops.heads import split_heads
from keras_visattn.ops.local_attention import local_attention_2d
from keras_visattn.ops.windows import average_pool_2d, output_length, window_spans
from keras_visattn.typing import ImageAttentionArguments, IntOrPair, Outputs, Padding, Tensor


@keras.saving.register_keras_serializable(package="keras_visattn")
class LocalSelfAttention2D(ImageAttention):
    """Replaces a convolution: each pixel attends to the window around it, head by head.

    `softmax(q . k + q . r) @ v` over the window, without a scale. `r` is the embedding of the
    key's row offset beside that of its column offset; the heads share it. Pixels outside the
    image are no keys. A stride is an average pool after the attention.

    Args:
        filters: Integer, number of output channels; `num_heads` must divide it.
        kernel_size: Odd integer or pair, size of the window.
        num_heads: Integer, number of heads. A head's size must be even if
            `position="relative"`: half for rows, half for columns.
        strides: Integer, side and distance of the windows of the average pool.
        dilation_rate: Integer or pair, distance of neighbouring keys.
        padding: `"same"` gives an output for each pixel, `"valid"` for those whose window lies
            inside the image.
        position: `"relative"`; `"absolute"`, which adds sinusoids to the layer's input; or `None`.
        use_bias: Boolean, whether the projections have biases.
        **kwargs: `data_format`; `kernel_initializer` and the other initializer, regularizer and
            constraint arguments of `keras.layers.Conv2D`; those of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor, a batch of maps.
        return_attention_scores: Boolean, whether to return the scores too.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `data_format="channels_first"`.

    Output shape:
        `(batch, new height, new width, filters)`, or with the channels first. The scores, before
        the pool: `(batch, height, width, num_heads, kernel height * kernel width)`, in either
        data format, zero at positions outside the image.

    Raises:
        ValueError: If `num_heads` does not divide `filters`, a head's size is odd where it must
            be even, `kernel_size` is even, a size is not positive, `padding` or `position` is
            unknown, the input has not four axes, or a `"valid"` window is larger than it.

    Reference:
        Ramachandran et al., 2019, "Stand-Alone Self-Attention in Vision Models", section 3
        (https://arxiv.org/abs/1906.05909).

    Examples:
        >>> layer = keras_visattn.layers.LocalSelfAttention2D(64, strides=2)
        >>> keras.ops.shape(layer(keras.random.normal((2, 8, 6, 32))))
        (2, 4, 3, 64)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: IntOrPair = 7,
        num_heads: int = 8,
        strides: int = 1,
        dilation_rate: IntOrPair = 1,
        padding: Padding = "same",
        position: Literal["relative", "absolute"] | None = "relative",
        use_bias: bool = False,
        **kwargs: Unpack[ImageAttentionArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.filters = checks.positive_integer("filters", filters)
        self.kernel_size = checks.odd_window("kernel_size", kernel_size)
        self.num_heads = checks.positive_integer("num_heads", num_heads)
        self.strides = checks.positive_integer("strides", strides)
        self.dilation_rate = checks.window("dilation_rate", dilation_rate)
        self.padding = checks.choice("padding", padding, ("same", "valid"))
        self.position = checks.choice("position", position, ("relative", "absolute", None))
        self.use_bias = use_bias
        checks.divides("num_heads", self.num_heads, "filters", self.filters)
        if position == "relative" and self.filters // self.num_heads % 2:
            raise ValueError(
                '`filters // num_heads` must be even if `position="relative"`. '
                f"Received: filters={filters}, num_heads={num_heads}"
            )
        self.encoding = None
        if position == "absolute":
            self.encoding = SinusoidalPositionEncoding(
                data_format="channels_last", dtype=self.dtype_policy, name="position"
            )

    def build(self, input_shape):
        channels = self.accept(input_shape)
        checks.weight("`filters`", channels, 3 * self.filters)
        self.projection = keras.layers.Dense(
            3 * self.filters,
            use_bias=self.use_bias,
            name="projection",
            **self.kernel_arguments(),
        )
        self.projection.build((input_shape[0], None, None, channels))
        self.row_embeddings = self.column_embeddings = None
        if self.position == "relative":
            self.row_embeddings = self._embeddings("row_embeddings", self.kernel_size[0])
            self.column_embeddings = self._embeddings("column_embeddings", self.kernel_size[1])

    def _embeddings(self, name, length):
        size = self.filters // self.num_heads
        return self.add_weight(
            name=name,
            shape=(length, size // 2),
            initializer=keras.initializers.RandomNormal(stddev=size**-0.5),
        )

    def call(self, inputs: Tensor, return_attention_scores: bool = False) -> Outputs:
        x = self.to_channels_last(inputs)
        if self.encoding is not None:
            x = self.encoding(x)
        query, key, value = split_heads(self.projection(x), self.num_heads, 3 * [self.filters])
        outputs = local_attention_2d(
            query,
            key,
            value,
            self.row_embeddings,
            self.column_embeddings,
            self.kernel_size,
            self.dilation_rate,
            self.padding,
            return_scores=return_attention_scores,
        )
        outputs, scores = outputs if return_attention_scores else (outputs, None)
        outputs = ops.reshape(outputs, (*ops.shape(outputs)[:3], self.filters))
        outputs = self.from_channels_last(average_pool_2d(outputs, self.strides, self.strides))
        return (outputs, scores) if return_attention_scores else outputs

    def _size(self, input_shape, strides):
        """Gives (batch, height, width) after the attention and a pool."""
        batch, *lengths, _ = self.image_shape(input_shape)
        spans = window_spans(self.kernel_size, self.dilation_rate)
        return batch, *(
            output_length(length, span, strides, self.padding)
            for length, span in zip(lengths, spans, strict=True)
        )

    def compute_output_shape(self, input_shape):
        return self.output_shape_of(*self._size(input_shape, self.strides), self.filters)

    def compute_scores_shape(self, input_shape):
        places = self.kernel_size[0] * self.kernel_size[1]
        return (*self._size(input_shape, 1), self.num_heads, places)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "num_heads": self.num_heads,
            "strides": self.strides,
            "dilation_rate": self.dilation_rate,
            "padding": self.padding,
            "position": self.position,
            "use_bias": self.use_bias,
        }
