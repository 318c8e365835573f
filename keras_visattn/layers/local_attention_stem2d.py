"""The attention stem, with values that know where they are (Ramachandran et al., 2019)."""

from typing import Unpack

import keras
from keras import ops

from keras_visattn.layers.image_layer import ImageAttention
from keras_visattn.ops import checks
from keras_visattn.ops.heads import split_heads
from keras_visattn.ops.local_attention import block_attention_2d
from keras_visattn.ops.windows import divide_up, output_length
from keras_visattn.typing import ImageAttentionArguments, IntOrPair, Outputs, Tensor


@keras.saving.register_keras_serializable(package="keras_visattn")
class LocalAttentionStem2D(ImageAttention):
    """Replaces a network's first convolution: attention in blocks, normalization, maximum pool.

    The image is cut into blocks that do not overlap; each pixel attends to its block:
    `softmax(q . k) @ v`, without a scale. The value of the pixel at place `(a, b)` of its block
    is a mixture of projections, `sum_m p(a, b, m) W_m x`, with
    `p = softmax_m((rows(a) + columns(b)) . nu_m)`, shared by the heads. Batch normalization
    (epsilon 1e-5, momentum 0.9) and a maximum pool follow.

    Args:
        filters: Integer, number of output channels; `num_heads` must divide it.
        kernel_size: Integer or pair, size of a block. The last blocks are smaller where it does
            not divide the image.
        num_heads: Integer, number of heads.
        num_mixtures: Integer, number of value projections that are mixed.
        pool_size: Integer, side and distance of the windows of the maximum pool.
        use_bias: Boolean, whether the projections have biases.
        **kwargs: `data_format`; `kernel_initializer` and the other initializer, regularizer and
            constraint arguments of `keras.layers.Conv2D`; those of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor, a batch of images.
        training: Boolean, whether batch normalization takes the batch's statistics.
        return_attention_scores: Boolean, whether to return the scores too.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `data_format="channels_first"`.

    Output shape:
        `(batch, ceil(height / pool_size), ceil(width / pool_size), filters)`, or with the channels
        first. The scores, before the pool:
        `(batch, height, width, num_heads, block height * block width)`, in either data format,
        zero at positions outside the image.

    Raises:
        ValueError: If `num_heads` does not divide `filters`, a size is not positive, or the
            input has not four axes.

    Reference:
        Ramachandran et al., 2019, "Stand-Alone Self-Attention in Vision Models", section 3.3
        (https://arxiv.org/abs/1906.05909).

    Examples:
        >>> layer = keras_visattn.layers.LocalAttentionStem2D(64)
        >>> keras.ops.shape(layer(keras.random.normal((2, 32, 24, 3))))
        (2, 8, 6, 64)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: IntOrPair = 4,
        num_heads: int = 4,
        num_mixtures: int = 4,
        pool_size: int = 4,
        use_bias: bool = False,
        **kwargs: Unpack[ImageAttentionArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.filters = checks.positive_integer("filters", filters)
        self.kernel_size = checks.window("kernel_size", kernel_size)
        self.num_heads = checks.positive_integer("num_heads", num_heads)
        self.num_mixtures = checks.positive_integer("num_mixtures", num_mixtures)
        self.pool_size = checks.positive_integer("pool_size", pool_size)
        self.use_bias = use_bias
        checks.divides("num_heads", self.num_heads, "filters", self.filters)

    def build(self, input_shape):
        channels = self.accept(input_shape)
        checks.weight("`filters` and `num_mixtures`", channels, 2 + self.num_mixtures, self.filters)
        self.projection = keras.layers.Dense(
            (2 + self.num_mixtures) * self.filters,
            use_bias=self.use_bias,
            name="projection",
            **self.kernel_arguments(),
        )
        self.projection.build((input_shape[0], None, None, channels))
        self.row_embeddings = self._embeddings("row_embeddings", self.kernel_size[0])
        self.column_embeddings = self._embeddings("column_embeddings", self.kernel_size[1])
        self.mixture_embeddings = self._embeddings("mixture_embeddings", self.num_mixtures)
        self.batch_norm = keras.layers.BatchNormalization(
            momentum=0.9, epsilon=1e-5, dtype=self.dtype_policy, name="batch_norm"
        )
        self.batch_norm.build((input_shape[0], None, None, self.filters))

    def _embeddings(self, name, length):
        size = self.filters // self.num_heads
        return self.add_weight(
            name=name,
            shape=(length, size),
            initializer=keras.initializers.RandomNormal(stddev=size**-0.5),
        )

    def call(
        self, inputs: Tensor, training: bool | None = None, return_attention_scores: bool = False
    ) -> Outputs:
        x = self.to_channels_last(inputs)
        query, key, values = split_heads(
            self.projection(x),
            self.num_heads,
            [self.filters, self.filters, self.num_mixtures * self.filters],
        )
        outputs = block_attention_2d(
            query,
            key,
            self._mix(values),
            self.kernel_size,
            return_scores=return_attention_scores,
        )
        outputs, scores = outputs if return_attention_scores else (outputs, None)
        outputs = ops.reshape(outputs, (*ops.shape(outputs)[:3], self.filters))
        outputs = self.batch_norm(outputs, training=training)
        outputs = ops.max_pool(
            outputs, self.pool_size, self.pool_size, "same", data_format="channels_last"
        )
        outputs = self.from_channels_last(outputs)
        return (outputs, scores) if return_attention_scores else outputs

    def _mix(self, values):
        """Mixes `(B, H, W, N, M * E)` to `(B, H, W, N, E)` by each pixel's place in its block."""
        places = self.row_embeddings[:, None, :] + self.column_embeddings[None, :, :]
        logits = ops.einsum("abd,md->abm", places, self.mixture_embeddings)
        shares = ops.exp(logits - ops.logsumexp(logits, axis=-1, keepdims=True))
        batch, height, width, heads, _ = ops.shape(values)
        counts = [
            divide_up(length, size)
            for length, size in zip((height, width), self.kernel_size, strict=True)
        ]
        shares = ops.tile(shares, (*counts, 1))[:height, :width]
        size = self.filters // self.num_heads
        values = ops.reshape(values, (batch, height, width, heads, self.num_mixtures, size))
        return ops.einsum("bhwnme,hwm->bhwne", values, shares)

    def compute_output_shape(self, input_shape):
        batch, *lengths, _ = self.image_shape(input_shape)
        pooled = (output_length(length, 0, self.pool_size, "same") for length in lengths)
        return self.output_shape_of(batch, *pooled, self.filters)

    def compute_scores_shape(self, input_shape):
        places = self.kernel_size[0] * self.kernel_size[1]
        return (*self.image_shape(input_shape)[:3], self.num_heads, places)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "num_heads": self.num_heads,
            "num_mixtures": self.num_mixtures,
            "pool_size": self.pool_size,
            "use_bias": self.use_bias,
        }
