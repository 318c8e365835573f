"""Vectors of tokens, and logits of tokens, from one table (Vaswani et al., 2017)."""

from typing import Unpack

import keras
from keras import constraints, initializers, ops, regularizers

from keras_visattn.ops import checks
from keras_visattn.typing import Constraint, Initializer, LayerArguments, Regularizer, Tensor


@keras.saving.register_keras_serializable(package="keras_visattn")
class TokenEmbedding(keras.layers.Layer):
    """Gives each token its row of a table, or, in reverse, each vector a logit for each token.

    `sqrt(output_dim) * table[token]`, and `x @ table^T` if `reverse=True`. The same layer at the
    inputs and the output of a model shares the table between them.

    Args:
        input_dim: Integer, number of tokens.
        output_dim: Integer, number of channels.
        padding_token: Integer or `None`, the token that the layer's mask hides from later layers.
        embeddings_initializer: Initializer of the table. Defaults to a normal distribution of
            standard deviation `output_dim ** -0.5`.
        embeddings_regularizer: Regularizer of the table.
        embeddings_constraint: Constraint of the table.
        **kwargs: Keyword arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of tokens, or of vectors if `reverse=True`.
        reverse: Boolean, whether to give logits of tokens for vectors.

    Input shape:
        Integers `(batch, length)`, or `(batch, length, output_dim)` if `reverse=True`.

    Output shape:
        `(batch, length, output_dim)`, or `(batch, length, input_dim)` if `reverse=True`.

    Raises:
        ValueError: If a size is not positive, the padding is not a token, or the input has
            another shape.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need", section 3.4
        (https://arxiv.org/abs/1706.03762).

    Examples:
        >>> layer = keras_visattn.layers.TokenEmbedding(input_dim=100, output_dim=8)
        >>> x = layer(keras.ops.ones((2, 7), "int32"))
        >>> keras.ops.shape(x), keras.ops.shape(layer(x, reverse=True))
        ((2, 7, 8), (2, 7, 100))
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        padding_token: int | None = None,
        embeddings_initializer: Initializer | None = None,
        embeddings_regularizer: Regularizer | None = None,
        embeddings_constraint: Constraint | None = None,
        **kwargs: Unpack[LayerArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.input_dim = checks.positive_integer("input_dim", input_dim)
        self.output_dim = checks.positive_integer("output_dim", output_dim)
        if padding_token is not None and padding_token not in range(input_dim):
            raise ValueError(
                "`padding_token` must be None or a token from 0 to `input_dim - 1`. "
                f"Received: padding_token={padding_token}, input_dim={input_dim}"
            )
        self.padding_token = padding_token
        self.embeddings_initializer = initializers.get(embeddings_initializer)
        self.embeddings_regularizer = regularizers.get(embeddings_regularizer)
        self.embeddings_constraint = constraints.get(embeddings_constraint)

    def build(self, input_shape):
        checks.weight("`input_dim` and `output_dim`", self.input_dim, self.output_dim)
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.input_dim, self.output_dim),
            initializer=self.embeddings_initializer
            or initializers.RandomNormal(stddev=self.output_dim**-0.5),
            regularizer=self.embeddings_regularizer,
            constraint=self.embeddings_constraint,
        )

    def call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        self.compute_output_shape(inputs.shape, reverse)
        if reverse:
            return ops.matmul(inputs, ops.transpose(self.embeddings))
        rows = ops.take(self.embeddings, ops.cast(inputs, "int32"), axis=0)
        return ops.cast(rows * self.output_dim**0.5, self.compute_dtype)

    def compute_mask(self, inputs, previous_mask=None):
        if self.padding_token is None or len(inputs.shape) != 2:
            return previous_mask
        return ops.not_equal(inputs, self.padding_token)

    def compute_output_shape(self, input_shape, reverse=False):
        shape = checks.rank("inputs", input_shape, (3,) if reverse else (2,))
        if reverse:
            checks.same_axes("inputs", shape, "table", (self.input_dim, self.output_dim), (-1,))
        return (*shape[:2], self.input_dim if reverse else self.output_dim)

    def compute_output_spec(self, inputs, reverse=False):
        shape = self.compute_output_shape(inputs.shape, reverse)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "input_dim": self.input_dim,
            "output_dim": self.output_dim,
            "padding_token": self.padding_token,
            "embeddings_initializer": initializers.serialize(self.embeddings_initializer),
            "embeddings_regularizer": regularizers.serialize(self.embeddings_regularizer),
            "embeddings_constraint": constraints.serialize(self.embeddings_constraint),
        }
