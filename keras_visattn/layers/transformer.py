"""The blocks of the Transformer (Vaswani et al., 2017)."""

from typing import TypeAlias

import keras
from keras import ops

from keras_visattn.layers.transformer_block import TransformerBlock
from keras_visattn.ops import checks
from keras_visattn.ops.masks import order_mask, positions_mask
from keras_visattn.typing import Outputs, Tensor

Cache: TypeAlias = dict[str, tuple[Tensor, Tensor]]  # keys and values


@keras.saving.register_keras_serializable(package="keras_visattn")
class TransformerEncoderBlock(TransformerBlock):
    """Lets each position attend to all positions, then passes each through two dense layers.

    `y = norm(x + attention(x))`, then `norm(y + shrink(activation(expand(y))))`, both sublayers
    with dropout on what they add. Heads have the size `channels / num_heads`.

    Args:
        num_heads: Integer, number of heads; it divides the channels.
        intermediate_dim: Integer, hidden units of the feed-forward network. The paper's d_ff.
        dropout: Float in [0, 1], share of each sublayer's output that is dropped in training.
        activation: Activation of the hidden units, a name or a function.
        normalize_first: Boolean, whether each sublayer gets its input normalized, instead of
            the sum after it: `x + attention(norm(x))`. Not in the paper.
        **kwargs: `kernel_initializer` and the other initializer, regularizer and constraint
            arguments of `keras.layers.Dense`; those of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(batch, length, channels)`.
        mask: Boolean tensor `(batch, length)`, `False` where the input is padding, which no
            position attends to. Defaults to the mask that Keras passes along, if there is one.
        return_attention_scores: Boolean, whether to return the scores too.
        training: Boolean, whether the dropout acts.

    Input shape:
        `(batch, length, channels)`.

    Output shape:
        That of the input. The scores: `(batch, num_heads, length, length)`.

    Raises:
        ValueError: If a size is not positive, `num_heads` does not divide the channels, or the
            input or the mask has another shape.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need", section 3.1
        (https://arxiv.org/abs/1706.03762).

    Examples:
        >>> layer = keras_visattn.layers.TransformerEncoderBlock(num_heads=4, intermediate_dim=64)
        >>> keras.ops.shape(layer(keras.random.normal((2, 7, 32))))
        (2, 7, 32)
    """

    def build(self, input_shape):
        shape = self.accept("input_shape", input_shape)
        self.attention, self.attention_norm = self.build_attention("attention", shape, shape)
        self.build_feed_forward(shape)

    def call(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
    ) -> Outputs:
        inputs = ops.cast(inputs, self.compute_dtype)  # which may be integers
        x = self.before(self.attention_norm, inputs)
        if mask is not None:
            mask = positions_mask("mask", mask, inputs, (1,), "key")
        own = self.attention.keys_and_values(x)
        x, scores = self.attend(self.attention, x, own, mask, return_attention_scores)
        x = self.after(self.attention_norm, inputs, x, training)
        x = self.feed_forward(x, training)
        return (x, scores) if return_attention_scores else x

    def compute_output_shape(self, input_shape):
        return self.accept("input_shape", input_shape)

    def compute_output_spec(self, inputs, mask=None, return_attention_scores=False, training=None):
        shape = self.compute_output_shape(inputs.shape)
        outputs = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return outputs
        return outputs, self.scores_spec(inputs, inputs.shape[1])


@keras.saving.register_keras_serializable(package="keras_visattn")
class TransformerDecoderBlock(TransformerBlock):
    """Lets each position attend to those up to itself, then to a memory; then two dense layers.

    `y = norm(x + self_attention(x))`, `z = norm(y + cross_attention(y, memory))`, then
    `norm(z + shrink(activation(expand(z))))`. The memory is what the encoder gave.

    With a cache, the inputs are the positions from `position` on: their keys and values are
    written into the cache, and they attend to what stands there up to themselves. The shapes
    stay the same from step to step, so that one compiled step serves all.

    Args:
        num_heads: Integer, number of heads; it divides the channels.
        intermediate_dim: Integer, hidden units of the feed-forward network. The paper's d_ff.
        dropout: Float in [0, 1], share of each sublayer's output that is dropped in training.
        activation: Activation of the hidden units, a name or a function.
        normalize_first: Boolean, as in `TransformerEncoderBlock`.
        **kwargs: `kernel_initializer` and the other initializer, regularizer and constraint
            arguments of `keras.layers.Dense`; those of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(batch, length, channels)`.
        memory: Tensor `(batch, memory length, memory channels)`. With a cache it is not needed.
        inputs_mask: Boolean tensor `(batch, length)`, `False` where the input is padding. Defaults
            to the mask that Keras passes along. With a cache it does not count.
        memory_mask: Boolean tensor `(batch, memory length)`, the same for the memory.
        cache: What `start_cache` or the step before returned.
        position: Integer or scalar tensor, where in the cache the inputs stand.
        return_attention_scores: Boolean, whether to return the scores too.
        training: Boolean, whether the dropout acts.

    Input shape:
        `(batch, length, channels)`, and `(batch, memory length, memory channels)`.

    Output shape:
        That of the inputs. The scores: a dictionary with `"self"`, `(batch, num_heads, length,
        length)`, and `"cross"`, `(batch, num_heads, length, memory length)`. With a cache, the
        new cache comes last.

    Raises:
        ValueError: If a size is not positive, `num_heads` does not divide the channels, an input
            or a mask has another shape, or there is neither a memory nor a cache.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need", section 3.1
        (https://arxiv.org/abs/1706.03762).

    Examples:
        >>> layer = keras_visattn.layers.TransformerDecoderBlock(num_heads=4, intermediate_dim=64)
        >>> x, memory = keras.random.normal((2, 7, 32)), keras.random.normal((2, 9, 32))
        >>> keras.ops.shape(layer(x, memory))
        (2, 7, 32)
        >>> cache = layer.start_cache(memory, max_length=7)
        >>> y, cache = layer(x[:, :1], cache=cache, position=0)
        >>> keras.ops.shape(y)
        (2, 1, 32)
    """

    def build(self, inputs_shape, memory_shape=None):
        shape, memory = self._accept(inputs_shape, memory_shape)
        self.self_attention, self.self_attention_norm = self.build_attention(
            "self_attention", shape, shape
        )
        self.cross_attention, self.cross_attention_norm = self.build_attention(
            "cross_attention", shape, memory
        )
        self.build_feed_forward(shape)

    def _accept(self, inputs_shape, memory_shape):
        if memory_shape is None:
            raise ValueError(
                "`memory` must be given, or a cache that `start_cache` made of it. "
                f"Received: memory=None, inputs={tuple(inputs_shape)}"
            )
        shape = self.accept("inputs", inputs_shape)
        memory = self.accept("memory", memory_shape)
        checks.same_axes("inputs", shape, "memory", memory, (0,))
        return shape, memory

    def start_cache(self, memory: Tensor, max_length: int) -> Cache:
        """Projects the memory, once for all steps, and makes room for `max_length` positions."""
        keys, values = self.cross_attention.keys_and_values(memory)
        batch, _, heads, size = ops.shape(keys)
        empty = ops.zeros((batch, max_length, heads, size), keys.dtype)
        return {"self": (empty, empty), "cross": (keys, values)}

    def call(
        self,
        inputs: Tensor,
        memory: Tensor | None = None,
        inputs_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: Cache | None = None,
        position: int | Tensor = 0,
        return_attention_scores: bool = False,
        training: bool | None = None,
    ) -> Outputs:
        inputs = ops.cast(inputs, self.compute_dtype)
        x = self.before(self.self_attention_norm, inputs)
        own = self.self_attention.keys_and_values(x)
        if cache is None:
            self._accept(inputs.shape, None if memory is None else memory.shape)
            now = {"self": own, "cross": self.cross_attention.keys_and_values(memory)}
            mask = order_mask(ops.shape(x)[1], ops.shape(x)[1], causal=True)
            if inputs_mask is not None:
                padding = positions_mask("inputs_mask", inputs_mask, inputs, (1,), "key")
                mask = ops.logical_and(mask, padding)
        else:
            now = {"self": self._write(cache["self"], own, position), "cross": cache["cross"]}
            room = cache["self"][0].shape[1]
            mask = order_mask(ops.shape(x)[1], room, causal=True, start=position)
        scored = return_attention_scores
        x, self_scores = self.attend(self.self_attention, x, now["self"], mask, scored)
        y = self.after(self.self_attention_norm, inputs, x, training)
        x = self.before(self.cross_attention_norm, y)
        if memory_mask is not None:
            places = now["cross"][0][..., 0]
            memory_mask = positions_mask("memory_mask", memory_mask, places, (1,), "key")
        x, cross_scores = self.attend(self.cross_attention, x, now["cross"], memory_mask, scored)
        z = self.after(self.cross_attention_norm, y, x, training)
        answers = [self.feed_forward(z, training)]
        if scored:
            answers.append({"self": self_scores, "cross": cross_scores})
        if cache is not None:
            answers.append(now)
        return tuple(answers) if len(answers) > 1 else answers[0]

    def _write(self, cached, own, position):
        length, room = own[0].shape[1], cached[0].shape[1]
        if isinstance(position, int) and not 0 <= position <= room - length:
            raise ValueError(
                "The inputs must fit into the cache. "
                f"Received: position={position}, length={length}, max_length={room}"
            )
        start = (0, position, 0, 0)
        return tuple(
            ops.slice_update(old, start, new) for old, new in zip(cached, own, strict=True)
        )

    def compute_output_shape(self, inputs_shape, memory_shape=None):
        return self._accept(inputs_shape, memory_shape)[0]

    def compute_output_spec(
        self, inputs, memory=None, cache=None, return_attention_scores=False, **arguments
    ):
        answers = [keras.KerasTensor(self.accept("inputs", inputs.shape), dtype=self.compute_dtype)]
        if cache is None:
            self._accept(inputs.shape, None if memory is None else memory.shape)
            num_keys = {"self": inputs.shape[1], "cross": memory.shape[1]}
        else:
            num_keys = {name: keys.shape[1] for name, (keys, _) in cache.items()}
        if return_attention_scores:
            answers.append({name: self.scores_spec(inputs, n) for name, n in num_keys.items()})
        if cache is not None:
            answers.append(cache)
        return tuple(answers) if len(answers) > 1 else answers[0]
