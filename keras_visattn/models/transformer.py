"""The Transformer, encoder and decoder (Vaswani et al., 2017)."""

from typing import Any

import keras

from keras_visattn import layers
from keras_visattn.ops import checks


def Transformer(
    vocabulary_size: int,
    num_layers: int = 6,
    hidden_dim: int = 512,
    intermediate_dim: int = 2048,
    num_heads: int = 8,
    dropout: float = 0.1,
    normalize_first: bool = False,
    padding_token: int | None = 0,
    name: str | None = None,
) -> keras.Model:
    """Makes the model that reads a sequence of tokens and predicts another, token by token.

    The defaults are the paper's base model. The big one:
    `Transformer(vocabulary_size, hidden_dim=1024, intermediate_dim=4096, num_heads=16,
    dropout=0.3)`.

    Its inputs are the source tokens and, for teacher forcing, the target tokens; at each place of
    the target its output is a logit for each token that may come next. Train it on `[source,
    target[:, :-1]]` and `target[:, 1:]`, where a target begins with a token that means the start.
    `GreedyDecoder` writes a target.

    The encoder's input, the decoder's input and the output share one table of vectors. As in
    `torch.nn.Transformer`, a layer normalization follows the last block of each stack.

    The paper trains with `InverseSquareRootDecay`, `keras.optimizers.Adam(schedule, beta_1=0.9,
    beta_2=0.98, epsilon=1e-9)` and labels smoothed by 0.1.

    Args:
        vocabulary_size: Integer, number of tokens, source and target together.
        num_layers: Integer, blocks of the encoder, and of the decoder. The paper's N.
        hidden_dim: Integer, channels between the blocks. The paper's d_model.
        intermediate_dim: Integer, hidden units of the feed-forward networks. The paper's d_ff.
        num_heads: Integer, number of heads; it divides `hidden_dim`. The paper's h.
        dropout: Float in [0, 1], share that is dropped of the embeddings with their positions,
            and of each sublayer's output.
        normalize_first: Boolean, whether each sublayer gets its input normalized, instead of the
            sum after it. Not in the paper; deep stacks train more easily.
        padding_token: Integer, the token that fills short sequences up: nothing attends to it,
            and Keras leaves its places out of losses and metrics. `None` if there is none.
        name: String, name of the model.

    Returns:
        A functional `keras.Model` from two tensors of integers, `(batch, source length)` and
        `(batch, target length)`, to float32 logits `(batch, target length, vocabulary_size)`.

    Raises:
        ValueError: If a size is not positive, `num_heads` does not divide `hidden_dim`, or the
            padding is not a token.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need", sections 3 and 5
        (https://arxiv.org/abs/1706.03762).

    Examples:
        >>> model = keras_visattn.models.Transformer(100, 2, 32, 64, num_heads=4)
        >>> source, target = keras.ops.ones((2, 9), "int32"), keras.ops.ones((2, 7), "int32")
        >>> keras.ops.shape(model([source, target]))
        (2, 7, 100)
    """
    checks.positive_integer("num_layers", num_layers)
    checks.positive_integer("num_heads", num_heads)
    embedding = layers.TokenEmbedding(vocabulary_size, hidden_dim, padding_token, name="embedding")
    checks.divides("num_heads", num_heads, "hidden_dim", hidden_dim)
    positions = layers.SinusoidalPositionEncoding(name="positions")
    drop = keras.layers.Dropout(dropout, name="drop")
    block: dict[str, Any] = {
        "num_heads": num_heads,
        "intermediate_dim": intermediate_dim,
        "dropout": dropout,
        "normalize_first": normalize_first,
    }
    source = keras.Input((None,), dtype="int32", name="source")
    memory = drop(positions(embedding(source)))
    for number in range(1, num_layers + 1):
        memory = layers.TransformerEncoderBlock(**block, name=f"encoder_{number}")(memory)
    memory = keras.layers.LayerNormalization(epsilon=1e-5, name="encoder_norm")(memory)
    target = keras.Input((None,), dtype="int32", name="target")
    x = drop(positions(embedding(target)))
    for number in range(1, num_layers + 1):
        x = layers.TransformerDecoderBlock(**block, name=f"decoder_{number}")(x, memory)
    x = keras.layers.LayerNormalization(epsilon=1e-5, name="decoder_norm")(x)
    x = embedding(x, reverse=True)
    logits = keras.layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model([source, target], logits, name=name)
