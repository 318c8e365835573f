"""What the layers of the oracle share, as NumPy float64 loops: windows, convolution, attention."""

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
    columns = [(1 - f) * rows[:, a] + f * rows[:, b] for a, b, f in sources(image.shape[1], width)]
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


def sinusoid(position, channels, max_wavelength=10000.0):
    angles = [position / max_wavelength ** ((c - c % 2) / channels) for c in range(channels)]
    return np.array([np.cos(a) if c % 2 else np.sin(a) for c, a in enumerate(angles)])
