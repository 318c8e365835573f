"""The oracle of the gates, as NumPy float64 loops from the papers' equations: see reference.py."""

from itertools import product
from math import ceil

import numpy as np
from reference_loops import batch_norm, convolve, dense, from_pixels, sigmoid, under


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


def bam(inputs, weights, reduction_ratio=16, dilation_rate=4, identity_start=False):
    hidden = np.maximum(dense(inputs.mean(axis=(1, 2)), weights, "squeeze"), 0)
    channel = batch_norm(dense(hidden, weights, "excite"), weights, "channel_norm")
    pixels = []
    for image in inputs:
        for step in range(4):
            rate = dilation_rate if step in (1, 2) else 1
            image = convolve(image, weights, f"spatial_{step}", dilation=rate)
            image = image if step == 3 else np.maximum(image, 0)
        pixels.append(image)
    spatial = batch_norm(np.array(pixels), weights, "spatial_norm")
    gates = sigmoid(channel[:, None, None] + spatial)
    gates = 2 * gates if identity_start else 1 + gates
    return inputs * gates, gates


def gala(inputs, weights, reduction_ratio=16, identity_start=False):
    gates = np.zeros(inputs.shape)
    for image, gate in zip(inputs, gates, strict=True):
        g = dense(image.mean(axis=(0, 1)), weights, "squeeze")
        g = dense(np.maximum(g, 0), weights, "excite")
        for place in np.ndindex(image.shape[:2]):
            s = dense(np.maximum(dense(image[place], weights, "shrink"), 0), weights, "collapse")
            mixture = weights["sum_scale"] * (g + s) + weights["product_scale"] * (g * s)
            gate[place] = 1 + np.tanh(mixture)
    return inputs * gates, gates


def gather_excite(
    inputs, weights, extent=None, parametric=False, reduction_ratio=None, identity_start=False
):
    gates = []
    for image in inputs:
        height, width, _ = image.shape
        side = extent or max(height, width)  # or one window that holds the whole map
        gathered = {}
        for u, v in product(range(ceil(height / side)), range(ceil(width / side))):
            y, x = u * side, v * side
            near = image[max(y - side + 1, 0) : y + side, max(x - side + 1, 0) : x + side]
            gathered[u, v] = near.mean(axis=(0, 1))
        logits = image if parametric else from_pixels(gathered)
        steps = (extent.bit_length() - 1 if extent else 1) if parametric else 0
        for step in range(steps):
            stride, padding = (2, "same") if extent else (1, "valid")
            logits = np.maximum(logits, 0) if step else logits
            logits = convolve(logits, weights, f"gather_{step}", stride, 1, padding, True)
            logits = batch_norm(logits, weights, f"gather_{step}_batch_norm")
        if reduction_ratio is not None:
            logits = dense(np.maximum(dense(logits, weights, "squeeze"), 0), weights, "excite")
        gate = (1 + identity_start) * sigmoid(logits)
        if extent:
            pixels = product(range(height), range(width))
            gate = from_pixels({(y, x): gate[y // extent, x // extent] for y, x in pixels})
        gates.append(gate)
    return inputs * np.array(gates), np.array(gates)
