"""Relative positions on a map (Shaw et al., 2018; Bello et al., 2019)."""

import math
from typing import Unpack

import keras
from keras import constraints, initializers, ops, regularizers

from keras_visattn.ops import checks
from keras_visattn.ops.relative_position import (
    column_logits,
    embeddings_by_offset,
    relative_logits_2d,
    resize_table,
    row_logits,
)
from keras_visattn.typing import (
    Constraint,
    Extrapolation,
    Initializer,
    LayerArguments,
    Regularizer,
    Tensor,
)


@keras.saving.register_keras_serializable(package="keras_visattn")
class RelativePositionEmbedding2D(keras.layers.Layer):
    """Gives attention logits from the learnt embeddings of row and of column offsets.

    `logits[q, k] = query_q . (rows[row_k - row_q] + columns[column_k - column_q])`, where the two
    tables have a row for each offset and are shared by the heads. The logits are not scaled:
    `softmax((query @ key^T + logits) / sqrt(head size))` scales them with the others.

    Args:
        max_height: Integer, the row offsets go from `1 - max_height` to `max_height - 1`. Defaults
            to the height at build, or 32 where that is unknown.
        max_width: Integer, the same for the columns.
        extrapolation: What a larger map gets: `"interpolate"` stretches the tables linearly, so
            that offset 0 stays in the centre; `"clip"` gives offsets beyond a table its outermost
            row. A smaller map gets the middle of the tables.
        embeddings_initializer: Initializer of the tables. Defaults to a normal distribution of
            standard deviation `head size ** -0.5`.
        embeddings_regularizer: Regularizer of the tables.
        embeddings_constraint: Constraint of the tables.
        **kwargs: Keyword arguments of `keras.layers.Layer`.

    Input shape:
        Queries `(batch, height, width, heads, head size)`.

    Output shape:
        `(batch, heads, height * width, height * width)`.

    Raises:
        ValueError: If a maximum is not positive, `extrapolation` is unknown, or the input has not
            five axes.

    Reference:
        Bello et al., 2019, "Attention Augmented Convolutional Networks", section 3.2
        (https://arxiv.org/abs/1904.09925); Shaw et al., 2018, "Self-Attention with Relative
        Position Representations" (https://arxiv.org/abs/1803.02155).

    Examples:
        >>> layer = keras_visattn.layers.RelativePositionEmbedding2D()
        >>> keras.ops.shape(layer(keras.random.normal((2, 4, 3, 8, 16))))
        (2, 8, 12, 12)
    """

    def __init__(
        self,
        max_height: int | None = None,
        max_width: int | None = None,
        extrapolation: Extrapolation = "interpolate",
        embeddings_initializer: Initializer | None = None,
        embeddings_regularizer: Regularizer | None = None,
        embeddings_constraint: Constraint | None = None,
        **kwargs: Unpack[LayerArguments],
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("max_height", max_height), ("max_width", max_width)):
            if value is not None:
                checks.positive_integer(name, value)
        self.max_height = max_height
        self.max_width = max_width
        self.extrapolation = checks.choice("extrapolation", extrapolation, ("interpolate", "clip"))
        self.embeddings_initializer = initializers.get(embeddings_initializer)
        self.embeddings_regularizer = regularizers.get(embeddings_regularizer)
        self.embeddings_constraint = constraints.get(embeddings_constraint)

    def build(self, input_shape):
        _, height, width, _, size = checks.rank("input_shape", input_shape, (5,))
        if size is None:
            raise ValueError(f"The head size must be known. Received: input_shape={input_shape}")
        self.row_table = self._table("row_table", (self.max_height, height, 32), size)
        self.column_table = self._table("column_table", (self.max_width, width, 32), size)

    def _table(self, name, lengths, size):
        length = next(length for length in lengths if length is not None)
        checks.weight("`max_height` and `max_width`", 2 * length - 1, size)
        return self.add_weight(
            name=name,
            shape=(2 * length - 1, size),
            initializer=self.embeddings_initializer
            or initializers.RandomNormal(stddev=1 / math.sqrt(size)),
            regularizer=self.embeddings_regularizer,
            constraint=self.embeddings_constraint,
        )

    def call(self, queries: Tensor) -> Tensor:
        queries = ops.cast(queries, self.compute_dtype)  # which may be integers
        return relative_logits_2d(queries, *self._tables(queries))

    def row_and_column_logits(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the logits' two terms, whose sum over rows and columns is what `call` returns.

        Args:
            queries: Tensor `(B, H, W, N, D)`.

        Returns:
            A term for each row of keys `(B, N, H, W, H)`, and for each column `(B, N, H, W, W)`.
        """
        height, width = ops.shape(queries)[1:3]
        row_table, column_table = self._tables(queries)
        return (
            row_logits(queries, embeddings_by_offset(row_table, height)),
            column_logits(queries, embeddings_by_offset(column_table, width)),
        )

    def _tables(self, queries):
        height, width = ops.shape(queries)[1:3]
        tables = (self.row_table, height), (self.column_table, width)
        return [
            ops.cast(resize_table(table, size, self.extrapolation), queries.dtype)
            for table, size in tables
        ]

    def compute_output_shape(self, input_shape):
        batch, height, width, heads, _ = checks.rank("input_shape", input_shape, (5,))
        pixels = None if None in (height, width) else height * width
        return (batch, heads, pixels, pixels)

    def get_config(self):
        return {
            **super().get_config(),
            "max_height": self.max_height,
            "max_width": self.max_width,
            "extrapolation": self.extrapolation,
            "embeddings_initializer": initializers.serialize(self.embeddings_initializer),
            "embeddings_regularizer": regularizers.serialize(self.embeddings_regularizer),
            "embeddings_constraint": constraints.serialize(self.embeddings_constraint),
        }
