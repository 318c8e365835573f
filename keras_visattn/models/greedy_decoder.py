"""Greedy decoding with cached keys and values (Vaswani et al., 2017)."""

from typing import Any

import keras
from keras import ops

from keras_visattn import layers
from keras_visattn.ops import checks
from keras_visattn.typing import Tensor


@keras.saving.register_keras_serializable(package="keras_visattn")
class GreedyDecoder(keras.Model):
    """Writes a target for each source: the likeliest token, time after time.

    Each token takes one step of the decoder, which attends to the cached keys and values of the
    tokens before it, instead of a pass over the whole target. Encoder and steps are one program:
    `predict` compiles it once for each shape of the sources, where the backend compiles. It stops
    when all targets have ended.

    Args:
        model: Model that `models.Transformer` made, or a loaded one. It is shared, not copied:
            train it further, and the decoder follows.
        start_token: Integer, the token that every target begins with.
        end_token: Integer, the token that ends a target.
        max_length: Integer, the most tokens of a target, without the start.
        **kwargs: Keyword arguments of `keras.Model`.

    Input shape:
        Integers `(batch, source length)`.

    Output shape:
        Integers `(batch, max_length)`: the tokens after the start, up to the end token and with
        it, then the model's padding token (the end token if it has none).

    Raises:
        ValueError: If the model is another, `max_length` is not positive, or a token is not in
            the vocabulary.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need", section 3
        (https://arxiv.org/abs/1706.03762).

    Examples:
        >>> model = keras_visattn.models.Transformer(100, 2, 32, 64, num_heads=4)
        >>> decoder = keras_visattn.models.GreedyDecoder(model, 1, 2, max_length=5)
        >>> decoder.predict(keras.ops.ones((3, 9), "int32"), verbose=0).shape
        (3, 5)
    """

    def __init__(
        self, model: keras.Model, start_token: int, end_token: int, max_length: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        parts = {layer.name: layer for layer in model.layers}
        if not {"embedding", "positions", "encoder_norm", "decoder_norm"} <= set(parts):
            raise ValueError(
                f"`model` must be one that `models.Transformer` made. Received: model={model!r}"
            )
        self.embedding, self.positions = parts["embedding"], parts["positions"]
        size = self.embedding.input_dim
        for name, token in (("start_token", start_token), ("end_token", end_token)):
            if not 0 <= token < size:
                raise ValueError(
                    f"`{name}` must be a token of the model, from 0 to {size - 1}. "
                    f"Received: {name}={token}"
                )
        self.transformer = model
        self.start_token = start_token
        self.end_token = end_token
        self.max_length = checks.positive_integer("max_length", max_length)
        self.encoder_norm, self.decoder_norm = parts["encoder_norm"], parts["decoder_norm"]
        self.encoder_blocks, self.decoder_blocks = (
            [layer for layer in model.layers if isinstance(layer, kind)]
            for kind in (layers.TransformerEncoderBlock, layers.TransformerDecoderBlock)
        )

    def call(self, source: Tensor) -> Tensor:
        mask = self.embedding.compute_mask(source)
        memory = self.positions(self.embedding(source))
        for block in self.encoder_blocks:
            memory = block(memory, mask=mask)
        memory = self.encoder_norm(memory)
        batch, room = ops.shape(source)[0], (1, self.max_length, self.embedding.output_dim)
        encoding = self.positions(ops.zeros(room, memory.dtype))
        padding = self.embedding.padding_token
        padding = self.end_token if padding is None else padding

        def unfinished(position, token, ended, target, caches):
            return ops.logical_and(position < self.max_length, ops.any(ops.logical_not(ended)))

        def step(position, token, ended, target, caches):
            x = self.embedding(token) + ops.slice(encoding, (0, position, 0), (1, 1, room[-1]))
            new_caches = []
            for block, cache in zip(self.decoder_blocks, caches, strict=True):
                x, cache = block(x, memory_mask=mask, cache=cache, position=position)
                new_caches.append(cache)
            logits = self.embedding(self.decoder_norm(x), reverse=True)
            token = ops.cast(ops.argmax(logits, axis=-1), "int32")
            token = ops.where(ended[:, None], padding, token)
            ended = ops.logical_or(ended, token[:, 0] == self.end_token)
            target = ops.slice_update(target, (0, position), token)
            return position + 1, token, ended, target, new_caches

        return ops.while_loop(
            unfinished,
            step,
            (
                ops.zeros((), "int32"),
                ops.full((batch, 1), self.start_token, "int32"),
                ops.zeros((batch,), "bool"),
                ops.full((batch, self.max_length), padding, "int32"),
                [block.start_cache(memory, self.max_length) for block in self.decoder_blocks],
            ),
        )[3]

    def get_config(self):
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.transformer),
            "start_token": self.start_token,
            "end_token": self.end_token,
            "max_length": self.max_length,
        }

    @classmethod
    def from_config(cls, config):
        model = keras.saving.deserialize_keras_object(config["model"])
        return cls(**{**config, "model": model})
