"""The oracle: every layer as NumPy float64 loops, from the papers' equations.

Each function takes channels-last arrays, the weights by their path in the layer, and the layer's
settings; it works in inference mode and returns the output and the scores, gates or None.
"""

from itertools import product
from math import ceil, floor

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(logits):
    powers = np.exp(logits - np.max(logits))
    return powers / np.sum(powers)


def under(weights, name):
    """The weights of a sublayer."""
    return {k[len(name) + 1 :]: v for k, v in weights.items() if k.startswith(name + "/")}


def dense(x, weights, name):
    return x @ weights[f"{name}/kernel"] + weights.get(f"{name}/bias", 0)


def batch_norm(x, weights, name):
    w = under(weights, name)
    x = (x - w["moving_mean"]) / np.sqrt(w["moving_variance"] + 1e-5)
    return x * w["gamma"] + w["beta"]


def windows(length, size, stride=1, dilation=1, padding="same"):
    """For each window along an axis: its (place in the window, position) inside the image."""
    reach = (size - 1) * dilation
    first, count = 0, ceil((length - reach) / stride)
    if padding == "same":
        count = ceil(length / stride)
        first = -(max((count - 1) * stride + reach + 1 - length, 0) // 2)
    taps = [[(t, first + n * stride + t * dilation) for t in range(size)] for n in range(count)]
    return [[(t, p) for t, p in window if 0 <= p < length] for window in taps]


def windows2d(image, size, stride=1, dilation=1, padding="same"):
    """Yields ((u, v), [((a, b), (y, x)), ...]): each output pixel, and its window's pixels."""
    sizes, dilations = np.broadcast_to(size, 2), np.broadcast_to(dilation, 2)
    rows, columns = (
        windows(image.shape[axis], sizes[axis], stride, dilations[axis], padding) for axis in (0, 1)
    )
    for (u, row), (v, column) in product(enumerate(rows), enumerate(columns)):
        yield (u, v), [((a, b), (y, x)) for (a, y), (b, x) in product(row, column)]


def from_pixels(values):
    """An array from a dictionary of vectors by (row, column)."""
    height, width = (max(place[axis] for place in values) + 1 for axis in (0, 1))
    return np.array([[values[y, x] for x in range(width)] for y in range(height)])


def convolve(image, weights, name, stride=1, dilation=1, padding="same", depthwise=False):
    kernel, outputs = weights[f"{name}/kernel"], {}
    for place, window in windows2d(image, kernel.shape[:2], stride, dilation, padding):
        total = np.zeros(kernel.shape[2] if depthwise else kernel.shape[3])
        for tap, pixel in window:
            total += image[pixel] * kernel[tap][:, 0] if depthwise else image[pixel] @ kernel[tap]
        outputs[place] = total + weights.get(f"{name}/bias", 0)
    return from_pixels(outputs)


def pool(image, size, stride, reduce):
    return from_pixels(
        {
            place: reduce([image[pixel] for _, pixel in window], axis=0)
            for place, window in windows2d(image, size, stride)
        }
    )


def bilinear(image, height, width):
    """Interpolates between pixel centres; beyond the outermost ones, the border repeats."""

    def sources(length, target):
        for i in range(target):
            position = min(max((i + 0.5) * length / target - 0.5, 0), length - 1)
            low = floor(position)
            yield low, min(low + 1, length - 1), position - low

    rows = [(1 - f) * image[a] + f * image[b] for a, b, f in sources(image.shape[0], height)]
    rows = np.array(rows)
    columns = [
        (1 - f) * rows[:, a] + f * rows[:, b] for a, b, f in sources(image.shape[1], width)
    ]
    return np.stack(columns, axis=1)


def attend(query, key, value, logits=0.0, mask=None):
    """softmax((Q K^T + logits) / sqrt(d)) V on lists of vectors; no keys, no answer."""
    outputs, scores = np.zeros((len(query), value.shape[-1])), np.zeros((len(query), len(key)))
    logits = np.broadcast_to(logits, scores.shape)
    for t, q in enumerate(query):
        seen = [s for s in range(len(key)) if mask is None or mask[t, s]]
        if seen:
            shares = [(q @ key[s] + logits[t, s]) / np.sqrt(len(q)) for s in seen]
            scores[t, seen] = softmax(shares)
            outputs[t] = sum(scores[t, s] * value[s] for s in seen)
    return outputs, scores


def table_row(table, offset, size, extrapolation):
    """The embedding of `offset = key - query`: row key - query + L - 1 of the table."""
    last = len(table) // 2
    if size - 1 <= last:
        return table[offset + last]
    if extrapolation == "clip":
        return table[min(max(offset, -last), last) + last]
    position = offset * last / (size - 1) + last
    low = floor(position)
    high = min(low + 1, len(table) - 1)
    return table[low] * (1 - (position - low)) + table[high] * (position - low)


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


def sinusoid(position, channels, max_wavelength=10000.0):
    angles = [position / max_wavelength ** ((c - c % 2) / channels) for c in range(channels)]
    return np.array([np.cos(a) if c % 2 else np.sin(a) for c, a in enumerate(angles)])


def sinusoidal_position_encoding(inputs, weights, max_wavelength=10000.0):
    outputs, channels = inputs.astype("float64"), inputs.shape[-1]
    for place in np.ndindex(inputs.shape[1:-1]):
        sizes = [channels] if len(place) == 1 else [channels // 2, channels - channels // 2]
        terms = [sinusoid(*pair, max_wavelength) for pair in zip(place, sizes, strict=True)]
        outputs[(slice(None), *place)] += np.concatenate(terms)
    return outputs, None


def coordinate_channels2d(inputs, weights, with_radius=False):
    batch, height, width, _ = inputs.shape
    added = np.zeros((batch, height, width, 3 if with_radius else 2))
    for y, x in product(range(height), range(width)):
        row, column = 2 * y / (height - 1) - 1, 2 * x / (width - 1) - 1
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
        return output.reshape(*query.shape[:-1], -1), scores
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
    output = np.einsum("bnte,neo->bto", heads, weights["attention_output/kernel"])
    output = output + weights.get("attention_output/bias", 0)
    scores = scores.reshape(batch, num_heads, *query.shape[1:-1], *key.shape[1:-1])
    return output.reshape(*query.shape[:-1], -1), scores


def channel_attention(
    inputs,
    weights,
    reduction_ratio=16,
    pooling=("avg", "max"),
    use_bias=True,
    identity_start=False,
):
    pools = {
        "avg": lambda pixels: np.mean(pixels, axis=0),
        "max": lambda pixels: np.max(pixels, axis=0),
        "lp": lambda pixels: np.sqrt(np.sum(pixels**2, axis=0)),
        "lse": lambda pixels: np.log(np.sum(np.exp(pixels), axis=0)),
    }
    gates = np.zeros((len(inputs), 1, 1, inputs.shape[-1]))
    for image, gate in zip(inputs, gates, strict=True):
        pixels = image.reshape(-1, image.shape[-1])
        hidden = [np.maximum(dense(pools[p](pixels), weights, "squeeze"), 0) for p in pooling]
        gate[0, 0] = sigmoid(sum(dense(h, weights, "excite") for h in hidden))
    gates *= 2 if identity_start else 1
    return inputs * gates, gates


def squeeze_excite(inputs, weights, reduction_ratio=16, use_bias=True, identity_start=False):
    averages = inputs.mean(axis=(1, 2), keepdims=True)
    hidden = np.maximum(dense(averages, weights, "channel/squeeze"), 0)
    gates = (1 + identity_start) * sigmoid(dense(hidden, weights, "channel/excite"))
    return inputs * gates, gates


def spatial_attention(
    inputs, weights, kernel_size=7, use_bias=False, use_batch_norm=True, identity_start=False
):
    pooled = np.stack([inputs.mean(axis=-1), inputs.max(axis=-1)], axis=-1)
    logits = np.array([convolve(image, weights, "convolution") for image in pooled])
    if use_batch_norm:
        logits = batch_norm(logits, weights, "batch_norm")
    gates = (1 + identity_start) * sigmoid(logits)
    return inputs * gates, gates


def cbam(
    inputs,
    weights,
    pooling=("avg", "max"),
    order="channel_first",
    channel=True,
    spatial=True,
    use_batch_norm=True,
    identity_start=False,
    **settings,
):
    steps = {
        "channel": lambda x: channel_attention(
            x, under(weights, "channel"), pooling=pooling, identity_start=identity_start
        ),
        "spatial": lambda x: spatial_attention(
            x,
            under(weights, "spatial"),
            use_batch_norm=use_batch_norm,
            identity_start=identity_start,
        ),
    }
    names = [name for name, wanted in (("channel", channel), ("spatial", spatial)) if wanted]
    outputs, gates = inputs, {}
    for name in names[::-1] if order == "spatial_first" else names:
        _, gates[name] = steps[name](inputs if order == "parallel" else outputs)
        outputs = outputs * gates[name]
    return outputs, gates
