"""The oracle of the Transformer's layers, as NumPy float64 loops: see reference.py."""

import numpy as np
from reference_loops import attend, dense, under


def layer_norm(x, weights, name):
    w = under(weights, name)
    outputs = np.zeros(x.shape)
    for place in np.ndindex(x.shape[:-1]):
        centred = x[place] - np.mean(x[place])
        outputs[place] = centred / np.sqrt(np.mean(centred**2) + 1e-5) * w["gamma"] + w["beta"]
    return outputs


def attention(queries, memory, weights, name, num_heads, mask):
    """Sums what each head gives; `mask` holds a boolean for each row, query and key."""
    w = under(weights, name)
    outputs = np.zeros(queries.shape) + w["attention_output/bias"]
    scores = np.zeros((len(queries), num_heads, queries.shape[1], memory.shape[1]))
    for b, n in np.ndindex(scores.shape[:2]):
        q, k, v = (
            x[b] @ w[f"{part}/kernel"][:, n] + w[f"{part}/bias"][n]
            for part, x in (("query", queries), ("key", memory), ("value", memory))
        )
        head, scores[b, n] = attend(q, k, v, mask=mask[b])
        outputs[b] += head @ w["attention_output/kernel"][n]
    return outputs, scores


def relu(x):
    return np.maximum(x, 0)


def residual(x, sublayer, weights, name, normalize_first):
    """The paper's norm(x + f(x)), or x + f(norm(x))."""
    if normalize_first:
        outputs, scores = sublayer(layer_norm(x, weights, name))
        return x + outputs, scores
    outputs, scores = sublayer(x)
    return layer_norm(x + outputs, weights, name), scores


def feed_forward(weights):
    return lambda x: (dense(relu(dense(x, weights, "expand")), weights, "shrink"), None)


def transformer_encoder_block(
    inputs, weights, num_heads, intermediate_dim, normalize_first=False, mask=None
):
    x = inputs[0] if isinstance(inputs, list) else inputs
    batch, length, _ = x.shape
    seen = np.ones((batch, length, length), bool)
    if mask is not None:
        seen &= mask[:, None, :]

    def self_attention(x):
        return attention(x, x, weights, "attention", num_heads, seen)

    x, scores = residual(x, self_attention, weights, "attention_norm", normalize_first)
    x, _ = residual(x, feed_forward(weights), weights, "feed_forward_norm", normalize_first)
    return x, scores


def transformer_decoder_block(
    inputs,
    weights,
    num_heads,
    intermediate_dim,
    normalize_first=False,
    inputs_mask=None,
    memory_mask=None,
):
    x, memory = inputs
    batch, length, _ = x.shape
    seen = np.zeros((batch, length, length), bool)
    for b, t, s in np.ndindex(seen.shape):
        seen[b, t, s] = s <= t and (inputs_mask is None or inputs_mask[b, s])
    known = np.ones((batch, length, memory.shape[1]), bool)
    if memory_mask is not None:
        known &= memory_mask[:, None, :]

    def self_attention(x):
        return attention(x, x, weights, "self_attention", num_heads, seen)

    def cross_attention(x):
        return attention(x, memory, weights, "cross_attention", num_heads, known)

    scores = {}
    first = normalize_first
    x, scores["self"] = residual(x, self_attention, weights, "self_attention_norm", first)
    x, scores["cross"] = residual(x, cross_attention, weights, "cross_attention_norm", first)
    x, _ = residual(x, feed_forward(weights), weights, "feed_forward_norm", first)
    return x, scores


def token_embedding(inputs, weights, input_dim, output_dim, reverse=False):
    table = weights["embeddings"]
    if reverse:
        outputs = np.zeros((*inputs.shape[:2], input_dim))
        for b, t, token in np.ndindex(outputs.shape):
            outputs[b, t, token] = inputs[b, t] @ table[token]
        return outputs, None
    outputs = np.zeros((*inputs.shape, output_dim))
    for place in np.ndindex(inputs.shape):
        outputs[place] = np.sqrt(output_dim) * table[int(inputs[place])]
    return outputs, None
