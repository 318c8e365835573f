"""What the blocks of the Transformer share (Vaswani et al., 2017)."""

from typing import Unpack

import keras
from keras import activations

from keras_visattn.layers.kernel_layer import KernelLayer
from keras_visattn.layers.multi_head_attention import MultiHeadAttention
from keras_visattn.ops import checks
from keras_visattn.typing import Activation, KernelLayerArguments


class TransformerBlock(KernelLayer):
    """Abstract block of residual sublayers, the last of them the feed-forward network."""

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        dropout: float = 0.1,
        activation: Activation = "relu",
        normalize_first: bool = False,
        **kwargs: Unpack[KernelLayerArguments],
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.num_heads = checks.positive_integer("num_heads", num_heads)
        self.intermediate_dim = checks.positive_integer("intermediate_dim", intermediate_dim)
        self.dropout = checks.fraction("dropout", dropout)
        self.activation = activations.get(activation)
        self.normalize_first = normalize_first

    def accept(self, name, shape):
        """Checks the shape of an input, and returns it."""
        shape = checks.rank(name, shape, (3,))
        if shape[-1] is None:
            raise ValueError(f"The number of channels must be known. Received: {name}={shape}")
        return shape

    def build_attention(self, name, shape, memory_shape):
        checks.divides("num_heads", self.num_heads, "channels", shape[-1])
        head_size = shape[-1] // self.num_heads
        attention = MultiHeadAttention(
            self.num_heads, head_size, name=name, **self.kernel_arguments()
        )
        attention.build(shape, memory_shape)
        return attention, self.build_norm(f"{name}_norm", shape)

    def build_norm(self, name, shape):
        norm = keras.layers.LayerNormalization(epsilon=1e-5, name=name, dtype=self.dtype_policy)
        norm.build(shape)
        return norm

    def build_feed_forward(self, shape):
        checks.weight("`intermediate_dim`", shape[-1], self.intermediate_dim)
        arguments = self.kernel_arguments()
        self.expand = keras.layers.Dense(
            self.intermediate_dim, activation=self.activation, name="expand", **arguments
        )
        self.expand.build(shape)
        arguments = self.kernel_arguments()
        self.shrink = keras.layers.Dense(shape[-1], name="shrink", **arguments)
        self.shrink.build((*shape[:-1], self.intermediate_dim))
        self.feed_forward_norm = self.build_norm("feed_forward_norm", shape)
        self.drop = keras.layers.Dropout(self.dropout, name="drop", dtype=self.dtype_policy)

    def attend(self, attention, query, keys_and_values, mask, with_scores):
        answers = attention.attend(query, *keys_and_values, mask, with_scores)
        return answers if with_scores else (answers, None)

    def before(self, norm, inputs):
        return norm(inputs) if self.normalize_first else inputs

    def after(self, norm, inputs, outputs, training):
        """Adds the outputs of a sublayer to its inputs."""
        x = inputs + self.drop(outputs, training=training)
        return x if self.normalize_first else norm(x)

    def feed_forward(self, inputs, training):
        x = self.before(self.feed_forward_norm, inputs)
        return self.after(self.feed_forward_norm, inputs, self.shrink(self.expand(x)), training)

    def scores_spec(self, inputs, num_keys):
        batch, length, _ = inputs.shape
        shape = batch, self.num_heads, length, num_keys
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout,
            "activation": activations.serialize(self.activation),
            "normalize_first": self.normalize_first,
        }
