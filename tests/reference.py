"""The oracle: every layer as NumPy float64 loops, from the papers' equations.

Each function takes channels-last arrays, the weights by their path in the layer, and the layer's
settings; it works in inference mode and returns the output and the scores, gates or None.
"""

from itertools import product
from math import floor

import numpy as np
from reference_gates import (
    bam,
    cbam,
    channel_attention,
    gala,
    gather_excite,
    spatial_attention,
    squeeze_excite,
)
from reference_loops import (
    attend,
    batch_norm,
    bilinear,
    convolve,
    dense,
    from_pixels,
    pool,
    sigmoid,
    sinusoid,
    softmax,
    table_row,
    under,
    windows2d,
)
from reference_transformer import (
    token_embedding,
    transformer_decoder_block,
    transformer_encoder_block,
)


def relative_position_embedding2d(
    queries, weights, max_height=None, max_width=None, extrapolation="interpolate"
):
    batch, height, width, heads, _ = queries.shape
    logits = np.zeros((batch, heads, height * width, height * width))
    rows, columns = weights["row_table"], weights["column_table"]
    pixels = list(product(range(height), range(width)))
    for (s, (y, x)), (t, (b, a)) in product(enumerate(pixels), repeat=2):
        row = table_row(rows, b - y, height, extrapolation)
        logits[:, :, s, t] = queries[:, y, x] @ (
            row + table_row(columns, a - x, width, extrapolation)
        )
    return logits, None


def sinusoidal_position_encoding(inputs, weights, max_wavelength=10000.0):
    outputs, channels = inputs.astype("float64"), inputs.shape[-1]
    for place in np.ndindex(inputs.shape[1:-1]):
        sizes = [channels] if len(place) == 1 else [(channels + 1) // 2, channels // 2]
        terms = [sinusoid(*pair, max_wavelength) for pair in zip(place, sizes, strict=True)]
        outputs[(slice(None), *place)] += np.concatenate(terms)
    return outputs, None


def coordinate_channels2d(inputs, weights, with_radius=False):
    batch, height, width, _ = inputs.shape
    added = np.zeros((batch, height, width, 3 if with_radius else 2))
    for y, x in product(range(height), range(width)):
        row = 2 * y / (height - 1) - 1 if height > 1 else 0
        column = 2 * x / (width - 1) - 1 if width > 1 else 0
        added[:, y, x] = [row, column, np.hypot(row, column)][: added.shape[-1]]
    return np.concatenate([inputs, added], axis=-1), None


def multi_head_attention(
    inputs,
    weights,
    num_heads,
    key_dim,
    attention_axes=None,
    sliding_window=None,
    use_gate=False,
    attention_mask=None,
    use_causal_mask=False,
    extrapolation="interpolate",
    **settings,
):
    query, value, key = inputs if len(inputs) == 3 else (*inputs, inputs[1])
    if attention_axes is not None:  # only the axis before the channels: rows are a batch
        merged = [a.reshape(-1, *a.shape[-2:]) for a in (query, value, key)]
        output, scores = multi_head_attention(
            merged, weights, num_heads, key_dim, None, sliding_window, use_gate
        )
        return output.reshape(*query.shape[:-1], *output.shape[2:]), scores
    flat = [a.reshape(len(a), -1, a.shape[-1]) for a in (query, value, key)]
    q, v, k = (
        np.einsum("btc,cnd->bntd", a, weights[f"{name}/kernel"])
        + np.asarray(weights.get(f"{name}/bias", np.zeros((num_heads, 1))))[:, None, :]
        for a, name in zip(flat, ("query", "value", "key"), strict=True)
    )
    batch, _, length, _ = q.shape
    mask = np.ones((batch, num_heads, length, k.shape[2]), bool)
    if attention_mask is not None:
        mask &= attention_mask.reshape(batch, -1, length, k.shape[2])
    for t, s in product(range(length), range(k.shape[2])):
        if (use_causal_mask and s > t) or (sliding_window and abs(s - t) >= sliding_window):
            mask[:, :, t, s] = False
    tables = {path.split("/")[-1]: w for path, w in weights.items() if path.endswith("_table")}
    logits = np.zeros((batch, num_heads, 1, 1))
    if tables:
        maps = q.transpose(0, 2, 1, 3).reshape(*query.shape[:3], num_heads, key_dim)
        logits, _ = relative_position_embedding2d(maps, tables, extrapolation=extrapolation)
    heads, scores = np.zeros((*q.shape[:3], v.shape[-1])), np.zeros(mask.shape)
    for b, n in product(range(batch), range(num_heads)):
        heads[b, n], scores[b, n] = attend(q[b, n], k[b, n], v[b, n], logits[b, n], mask[b, n])
    if use_gate:
        gate = np.einsum("btc,cnd->bntd", flat[0], weights["gate/kernel"])
        bias = np.asarray(weights.get("gate/bias", np.zeros((num_heads, 1))))
        heads = heads * sigmoid(gate + bias[:, None, :])
    output = np.tensordot(heads.transpose(0, 2, 1, 3), weights["attention_output/kernel"], 2)
    output = output + weights.get("attention_output/bias", 0)
    scores = scores.reshape(batch, num_heads, *query.shape[1:-1], *key.shape[1:-1])
    return output.reshape(*query.shape[:-1], *output.shape[2:]), scores


def augmented_conv2d(
    inputs,
    weights,
    filters,
    kernel_size,
    key_ratio=0.2,
    value_ratio=0.1,
    total_key_dim=None,
    total_value_dim=None,
    num_heads=8,
    min_key_dim=20,
    strides=1,
    dilation_rate=1,
    padding="same",
    position="relative",
    attention_pool=1,
    **settings,
):
    d_k = total_key_dim or num_heads * max(floor(key_ratio * filters / num_heads), min_key_dim)
    d_v = total_value_dim or num_heads * floor(value_ratio * filters / num_heads)
    outputs, scores = [], []
    for image in inputs:
        x = image
        if padding == "valid":  # the centres of the windows
            spans = (np.broadcast_to(kernel_size, 2) - 1) * np.broadcast_to(dilation_rate, 2)
            (top, left), (high, wide) = spans // 2, np.array(x.shape[:2]) - spans
            x = x[top : top + high, left : left + wide]
        x = pool(x, 2 * strides - 1, strides, np.mean)
        height, width, _ = x.shape
        x = pool(x, 2 * attention_pool - 1, attention_pool, np.mean)
        if position == "sinusoidal":
            x = sinusoidal_position_encoding(x[None], {})[0][0]
        elif position == "coordinates":
            x = coordinate_channels2d(x[None], {})[0][0]
        projected = dense(x.reshape(-1, x.shape[-1]), weights, "projection")
        parts = np.split(projected, [d_k, 2 * d_k], axis=-1)
        heads = [np.split(part, num_heads, axis=-1) for part in parts]
        logits = np.zeros((num_heads, 1, 1))
        if position == "relative":
            maps = np.stack(heads[0], axis=1).reshape(1, *x.shape[:2], num_heads, -1)
            logits = relative_position_embedding2d(maps, under(weights, "position"))[0][0]
        answers = [attend(*head, logits[n]) for n, head in enumerate(zip(*heads, strict=True))]
        attended = np.concatenate([answer for answer, _ in answers], axis=-1)
        attended = dense(attended, weights, "combination").reshape(*x.shape[:2], d_v)
        attended = bilinear(attended, height, width)
        if filters > d_v:
            local = convolve(image, weights, "convolution", strides, dilation_rate, padding)
            attended = np.concatenate([local, attended], axis=-1)
        outputs.append(attended)
        scores.append([shares for _, shares in answers])
    return np.array(outputs), np.array(scores)


def local_self_attention2d(
    inputs,
    weights,
    filters,
    kernel_size=7,
    num_heads=8,
    strides=1,
    dilation_rate=1,
    padding="same",
    position="relative",
    use_bias=False,
):
    if position == "absolute":
        inputs, _ = sinusoidal_position_encoding(inputs, {})
    outputs, scores = [], []
    for image in inputs:
        parts = np.split(dense(image, weights, "projection"), 3, axis=-1)
        q, k, v = (part.reshape(*image.shape[:2], num_heads, -1) for part in parts)
        answers, shares = {}, {}
        grid = windows2d(image, kernel_size, 1, dilation_rate, padding)
        offset = (0, 0)
        if padding == "valid":
            offset = (np.broadcast_to(kernel_size, 2) - 1) * np.broadcast_to(dilation_rate, 2) // 2
        kernel = tuple(np.broadcast_to(kernel_size, 2))
        for (u, v_), window in grid:
            query = q[u + offset[0], v_ + offset[1]]
            shares[u, v_] = np.zeros((num_heads, *kernel))
            answers[u, v_] = []
            for n in range(num_heads):
                logits = []
                for (a, b), pixel in window:
                    embedded = k[pixel][n]
                    if position == "relative":
                        rows, columns = weights["row_embeddings"], weights["column_embeddings"]
                        embedded = embedded + np.concatenate([rows[a], columns[b]])
                    logits.append(query[n] @ embedded)
                weighed = list(zip(window, softmax(np.array(logits)), strict=True))
                answers[u, v_].append(sum(share * v[pixel][n] for (_, pixel), share in weighed))
                for (tap, _), share in weighed:
                    shares[u, v_][(n, *tap)] = share
        answers = {place: np.concatenate(heads) for place, heads in answers.items()}
        outputs.append(pool(from_pixels(answers), strides, strides, np.mean))
        scores.append(
            from_pixels({place: share.reshape(num_heads, -1) for place, share in shares.items()})
        )
    return np.array(outputs), np.array(scores)


def local_attention_stem2d(
    inputs,
    weights,
    filters,
    kernel_size=4,
    num_heads=4,
    num_mixtures=4,
    pool_size=4,
    use_bias=False,
):
    outputs, scores = [], []
    high, wide = np.broadcast_to(kernel_size, 2)
    rows, columns = weights["row_embeddings"], weights["column_embeddings"]
    nus = weights["mixture_embeddings"]
    for image in inputs:
        height, width, _ = image.shape
        parts = np.split(dense(image, weights, "projection"), [filters, 2 * filters], axis=-1)
        q, k, v = (part.reshape(height, width, num_heads, -1) for part in parts)
        v = v.reshape(height, width, num_heads, num_mixtures, -1)
        mixed, shares = np.zeros(q.shape), np.zeros((height, width, num_heads, high * wide))
        for y, x, n in np.ndindex(q.shape[:3]):
            mixture = softmax(nus @ (rows[y % high] + columns[x % wide]))
            mixed[y, x, n] = sum(p * w for p, w in zip(mixture, v[y, x, n], strict=True))
        attended = np.zeros(q.shape)
        for y, x, n in np.ndindex(q.shape[:3]):
            top, left = y - y % high, x - x % wide
            block = product(range(high), range(wide))
            block = [(a, b) for a, b in block if top + a < height and left + b < width]
            logits = [q[y, x, n] @ k[top + a, left + b, n] for a, b in block]
            for (a, b), share in zip(block, softmax(np.array(logits)), strict=True):
                shares[y, x, n, a * wide + b] = share
                attended[y, x, n] += share * mixed[top + a, left + b, n]
        normal = batch_norm(attended.reshape(height, width, filters), weights, "batch_norm")
        outputs.append(pool(normal, pool_size, pool_size, np.max))
        scores.append(shares)
    return np.array(outputs), np.array(scores)


REFERENCES = {
    "MultiHeadAttention": multi_head_attention,
    "RelativePositionEmbedding2D": relative_position_embedding2d,
    "SinusoidalPositionEncoding": sinusoidal_position_encoding,
    "CoordinateChannels2D": coordinate_channels2d,
    "ChannelAttention": channel_attention,
    "SpatialAttention": spatial_attention,
    "CBAM": cbam,
    "AugmentedConv2D": augmented_conv2d,
    "LocalSelfAttention2D": local_self_attention2d,
    "LocalAttentionStem2D": local_attention_stem2d,
    "SqueezeExcite": squeeze_excite,
    "GatherExcite": gather_excite,
    "BAM": bam,
    "GALA": gala,
    "TransformerEncoderBlock": transformer_encoder_block,
    "TransformerDecoderBlock": transformer_decoder_block,
    "TokenEmbedding": token_embedding,
}
