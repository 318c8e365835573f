"""Multi-head attention, a drop-in for Keras' own (Vaswani et al., 2017)."""

import string
from typing import Unpack

import keras
from keras import ops

from keras_visattn.layers.kernel_layer import KernelLayer
from keras_visattn.layers.relative_position_embedding2d import RelativePositionEmbedding2D
from keras_visattn.ops import checks, heads
from keras_visattn.ops.attention import attention
from keras_visattn.ops.masks import joint_mask
from keras_visattn.typing import KernelLayerArguments, Outputs, Tensor


@keras.saving.register_keras_serializable(package="keras_visattn")
class MultiHeadAttention(KernelLayer):
    """Projects queries, keys and values to heads, attends, and projects the heads back.

    `concatenate(softmax(Q K^T / sqrt(key_dim)) V) @ W_O`. It takes the arguments of
    `keras.layers.MultiHeadAttention` and has its weights, in order and shape. It differs where
    that layer errs: the scores' declared shape is the true one, `query_mask` counts, a query that
    may attend to nothing gets zeros from every head, and `flash_attention` is kept.

    Args:
        num_heads: Integer, number of heads.
        key_dim: Integer, size of each head for query and key. The paper's d_k.
        value_dim: Integer, size of each head for value. Defaults to `key_dim`.
        dropout: Float in [0, 1], share of the scores that is dropped in training.
        use_bias: Boolean, whether the projections have biases.
        output_shape: Integer or tuple, the output's last axes. Defaults to the query's channels.
        attention_axes: Integer or tuple, the axes attended over. Defaults to all but the batch
            and the channels.
        sliding_window: Integer or `None`: keys at this distance or farther are hidden.
        flash_attention: `True` asks for the backend's flash kernel, which raises where it cannot
            serve; `False` forbids it; `None` follows `keras.config`.
        position_embedding: `None` or a `RelativePositionEmbedding2D`, whose logits are added.
            Query and key are then maps of one size, attended over both axes.
        use_gate: Boolean, whether the heads are multiplied by a sigmoid of a projected query.
        seed: Integer, seed of the dropout.
        **kwargs: `kernel_initializer` and the other initializer, regularizer and constraint
            arguments of `keras.layers.EinsumDense`; those of `keras.layers.Layer`.

    Call arguments:
        query: Tensor `(batch, ..., channels)`.
        value: Tensor `(batch, ..., channels)`.
        key: Tensor `(batch, ..., channels)`. Defaults to `value`.
        query_mask: Boolean tensor, the query's shape without channels: `False` hides every key.
        value_mask: Boolean tensor, the value's shape without channels: `False` hides a key.
        key_mask: Boolean tensor, the same for the key.
        attention_mask: Boolean tensor `(batch, query axes, key axes)`, optionally with an axis of
            heads after the batch: `True` where a query may attend.
        return_attention_scores: Boolean, whether to return the scores too.
        training: Boolean, whether the dropout acts.
        use_causal_mask: Boolean, whether keys after the query are hidden.

    Input shape:
        `(batch, length, channels)`, or `(batch, height, width, channels)`, or with more axes.

    Output shape:
        That of the query, with `output_shape` for the channels. The scores:
        `(batch, num_heads, query axes, key axes)`.

    Raises:
        ValueError: If a size is not positive, shapes or masks do not fit, or flash attention is
            asked for scores or dropout.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need", section 3.2
        (https://arxiv.org/abs/1706.03762).

    Examples:
        >>> layer = keras_visattn.layers.MultiHeadAttention(num_heads=4, key_dim=8)
        >>> x = keras.random.normal((2, 8, 6, 32))
        >>> keras.ops.shape(layer(x, x))
        (2, 8, 6, 32)
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | tuple[int, ...] | None = None,
        attention_axes: int | tuple[int, ...] | None = None,
        sliding_window: int | None = None,
        flash_attention: bool | None = None,
        position_embedding: RelativePositionEmbedding2D | None = None,
        use_gate: bool = False,
        seed: int | None = None,
        **kwargs: Unpack[KernelLayerArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.num_heads = checks.positive_integer("num_heads", num_heads)
        self.key_dim = checks.positive_integer("key_dim", key_dim)
        value_dim = key_dim if value_dim is None else value_dim
        self.value_dim = checks.positive_integer("value_dim", value_dim)
        self.dropout = checks.fraction("dropout", dropout)
        self.use_bias = use_bias
        self._output_axes = checks.integers("output_shape", output_shape)
        for size in self._output_axes or ():
            checks.positive_integer("output_shape", size)
        self.attention_axes = checks.integers("attention_axes", attention_axes)
        if sliding_window is not None:
            checks.positive_integer("sliding_window", sliding_window)
        self.sliding_window = sliding_window
        self.flash_attention = checks.choice(
            "flash_attention", flash_attention, (None, True, False)
        )
        if flash_attention and dropout > 0:
            raise ValueError(
                "`dropout` must be 0 if `flash_attention=True`. "
                f"Received: dropout={dropout}, flash_attention={flash_attention}"
            )
        self.position_embedding = position_embedding
        self.use_gate = use_gate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed) if dropout > 0 else None

    def build(self, query_shape, value_shape, key_shape=None):
        key_shape = value_shape if key_shape is None else key_shape
        self._check_shapes(query_shape, value_shape, key_shape)
        self.query_dense = self._to_heads("query", query_shape, self.key_dim)
        self.key_dense = self._to_heads("key", key_shape, self.key_dim)
        self.gate_dense = None
        if self.use_gate:
            self.gate_dense = self._to_heads("gate", query_shape, self.value_dim, "sigmoid")
        self.value_dense = self._to_heads("value", value_shape, self.value_dim)
        averages = (*query_shape[:-1], self.num_heads, self.value_dim)
        output = self._output_axes or (query_shape[-1],)
        self.output_dense = self._project("attention_output", averages, 2, output)
        if self.position_embedding is not None and not self.position_embedding.built:
            self.position_embedding.build((*query_shape[:-1], self.num_heads, self.key_dim))

    def _to_heads(self, name, shape, size, activation=None):
        return self._project(name, shape, 1, (self.num_heads, size), activation)

    def _project(self, name, shape, num_bound, output, activation=None):
        """Makes a projection of the last `num_bound` axes of a shape to the axes `output`."""
        letters = string.ascii_lowercase[: len(shape)]
        free, bound = letters[:-num_bound], letters[-num_bound:]
        new = string.ascii_uppercase[: len(output)]
        names = "`num_heads`, `key_dim`, `value_dim` and `output_shape`"
        checks.weight(names, *shape[-num_bound:], *output)
        dense = keras.layers.EinsumDense(
            f"{free}{bound},{bound}{new}->{free}{new}",
            output_shape=(*([None] * (len(free) - 1)), *output),
            bias_axes=new if self.use_bias else None,
            activation=activation,
            name=name,
            **self.kernel_arguments(),
        )
        dense.supports_masking = True  # a projection of each position leaves the mask as it is
        dense.build(tuple(shape))
        return dense

    def call(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
    ) -> Outputs:
        key = value if key is None else key
        masks = query_mask, value_mask, key_mask, attention_mask
        order = use_causal_mask, self.sliding_window
        axes = heads.attended_axes(self.attention_axes, query.shape)
        mask = joint_mask(query, key, axes, self.num_heads, *masks, *order)
        keys, values = self.keys_and_values(value, key)
        return self.attend(query, keys, values, mask, return_attention_scores, training)

    def keys_and_values(self, value: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Projects keys and values to heads, to be kept for later queries.

        Returns:
            Two tensors `(batch, ..., num_heads, head size)`.
        """
        key = value if key is None else key  # either may be of integers, which not all project
        key, value = (ops.cast(x, self.compute_dtype) for x in (key, value))
        return self.key_dense(key), self.value_dense(value)

    def attend(self, query, keys, values, mask=None, return_attention_scores=False, training=None):
        """Attends to what `keys_and_values` gave; the layer must be built.

        Args:
            query: Tensor `(batch, ..., channels)`.
            keys: Tensor `(batch, ..., num_heads, key_dim)`.
            values: Tensor `(batch, ..., num_heads, value_dim)`.
            mask: Boolean tensor that broadcasts to `(B, N, T, S)`, the attended axes as one.
            return_attention_scores: Boolean, whether to return the scores too.
            training: Boolean, whether the dropout acts.
        """
        query = ops.cast(query, self.compute_dtype)
        axes = heads.attended_axes(self.attention_axes, query.shape)
        query_heads, terms = self.query_dense(query), None
        if self.position_embedding is not None:
            terms = self.position_embedding.row_and_column_logits(query_heads)
            terms = [heads.flatten_pixels(x) for x in terms]
        outputs = attention(
            *(heads.to_sequence(x, axes) for x in (query_heads, keys, values)),
            mask=mask,
            relative_logits=terms,
            scale=self.key_dim**-0.5,
            dropout=self.dropout if training else 0.0,
            seed=self.seed_generator,
            return_scores=return_attention_scores,
            implementation=self._implementation(),
        )
        outputs, scores = outputs if return_attention_scores else (outputs, None)
        outputs = heads.from_sequence(outputs, ops.shape(query)[:-1], axes)
        if self.gate_dense is not None:
            outputs = outputs * self.gate_dense(query)
        outputs = self.output_dense(outputs)
        if not return_attention_scores:
            return outputs
        shape = heads.scores_shape(ops.shape(query), ops.shape(keys)[:-1], axes, self.num_heads)
        return outputs, ops.reshape(scores, shape)

    def _implementation(self):
        if self.flash_attention is None:
            return "flash" if keras.config.is_flash_attention_enabled() else None
        return "flash" if self.flash_attention else "core"

    def _check_shapes(self, query_shape, value_shape, key_shape):
        shapes = {"query": query_shape, "value": value_shape, "key": key_shape}
        for name, shape in shapes.items():
            if len(shape) < 3 or len(shape) != len(query_shape) or shape[-1] is None:
                raise ValueError(
                    "`query`, `value` and `key` must have as many axes, three at least, and a "
                    f"known number of channels. Received: {name}={tuple(shape)}, "
                    f"query={tuple(query_shape)}"
                )
        checks.same_axes("value", value_shape, "key", key_shape, range(len(key_shape) - 1))
        axes = heads.attended_axes(self.attention_axes, query_shape)
        if len({*axes} & {*range(1, len(query_shape) - 1)}) < len(axes):
            raise ValueError(
                "`attention_axes` must be axes between the batch and the channels, each once. "
                f"Received: attention_axes={self.attention_axes}, query={tuple(query_shape)}"
            )
        rest = [axis for axis in range(len(query_shape) - 1) if axis not in axes]
        checks.same_axes("query", query_shape, "key", key_shape, rest)
        if self.position_embedding is not None:
            if len(query_shape) != 4 or sorted(axes) != [1, 2]:
                raise ValueError(
                    "`position_embedding` needs maps (batch, height, width, channels), attended "
                    f"over both axes. Received: query={tuple(query_shape)}, attention_axes={axes}"
                )
            checks.same_axes("query", query_shape, "key", key_shape, (1, 2))

    def compute_output_shape(self, query_shape, value_shape, key_shape=None):
        key_shape = value_shape if key_shape is None else key_shape
        self._check_shapes(query_shape, value_shape, key_shape)
        return (*query_shape[:-1], *(self._output_axes or (query_shape[-1],)))

    def compute_output_spec(self, query, value, key=None, return_attention_scores=False, **rest):
        key = value if key is None else key
        shape = self.compute_output_shape(query.shape, value.shape, key.shape)
        outputs = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return outputs
        axes = heads.attended_axes(self.attention_axes, query.shape)
        shape = heads.scores_shape(query.shape, key.shape, axes, self.num_heads)
        return outputs, keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "output_shape": self._output_axes,
            "attention_axes": self.attention_axes,
            "sliding_window": self.sliding_window,
            "flash_attention": self.flash_attention,
            "position_embedding": keras.saving.serialize_keras_object(self.position_embedding),
            "use_gate": self.use_gate,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        # A config of Keras' layer has none.
        embedding = keras.saving.deserialize_keras_object(config.get("position_embedding"))
        return cls(**{**config, "position_embedding": embedding})
