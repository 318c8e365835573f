"""Draws the figures of the documentation's guides.

`python examples/figures.py --write docs/figures` draws all of them, in light and in dark. Two show
the network of the live page, which `examples/live_page.py` trains and `docs/live` holds.
"""

import argparse
import json
from pathlib import Path

import keras
import numpy as np
import onnxruntime
from keras import ops
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from schemes import draw_in_schemes

from keras_visattn import layers
from keras_visattn.ops import relative_logits_2d, sinusoidal_encoding

LIVE = Path(__file__).parents[1] / "docs" / "live"
SIDE, CHANNELS = 15, 16
LAYERS = {
    "Conv2D, 3x3": lambda: keras.layers.Conv2D(CHANNELS, 3, padding="same"),
    "CBAM": lambda: layers.CBAM(),
    "LocalSelfAttention2D, 7x7": lambda: layers.LocalSelfAttention2D(CHANNELS, 7),
    "AugmentedConv2D, 3x3": lambda: layers.AugmentedConv2D(CHANNELS, 3, value_ratio=0.5),
    "MultiHeadAttention": lambda: layers.MultiHeadAttention(4, 4),
}


def grid(rows, columns, width, height):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def influence(layer):
    """How far the middle pixel of the output moves when a pixel of the input does."""
    draw = np.random.default_rng(0)
    image = draw.normal(size=(SIDE, SIDE, CHANNELS)).astype("float32")
    moved = np.repeat(image[None], SIDE * SIDE, axis=0)
    pixels = np.arange(SIDE * SIDE)
    moved[pixels, pixels // SIDE, pixels % SIDE] += 0.1
    images = np.concatenate([image[None], moved])
    several = isinstance(layer, layers.MultiHeadAttention)
    outputs = ops.convert_to_numpy(layer(images, images) if several else layer(images))
    middle = outputs[:, SIDE // 2, SIDE // 2]
    return np.linalg.norm(middle[1:] - middle[0], axis=-1).reshape(SIDE, SIDE)


def draw_influence():
    keras.utils.set_random_seed(0)
    figure, axes = grid(1, len(LAYERS), 12, 2.9)
    for axis, (name, make) in zip(axes[0], LAYERS.items(), strict=True):
        values = influence(make())
        shown = axis.imshow(values / values.max(), norm=LogNorm(1e-4, 1), cmap="magma")
        axis.set_title(name, fontsize=10)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.01)
    bar.set_label("how far the middle pixel moves")
    return figure


def draw_sinusoids():
    encoding = ops.convert_to_numpy(sinusoidal_encoding(64, 64))
    figure, axes = grid(1, 2, 9, 3.4)
    for axis, values, title, label in zip(
        axes[0],
        (encoding, encoding @ encoding.T / 32),
        ("the encoding", "products of two positions' encodings"),
        ("channel", "position"),
        strict=True,
    ):
        shown = axis.imshow(values, cmap="RdBu", vmin=-1, vmax=1)
        figure.colorbar(shown, ax=axis, shrink=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(label)
        axis.set_ylabel("position")
    return figure


def draw_relative_logits():
    """The two terms of the relative logits, and their sum, for two pixels with one query."""
    height, width, size = 9, 13, 8
    draw = np.random.default_rng(4)
    query = np.broadcast_to(draw.normal(size=size), (1, height, width, 1, size)).astype("float32")
    rows, columns = (draw.normal(size=(2 * n - 1, size)).astype("float32") for n in (height, width))
    pixels = (2, 3), (6, 8)
    figure, axes = grid(len(pixels), 3, 9, 4.3)
    for line, pixel in zip(axes, pixels, strict=True):
        terms = (rows, 0 * columns), (0 * rows, columns), (rows, columns)
        titles = "rows: one value an offset", "columns", "the logits: their sum"
        for axis, tables, title in zip(line, terms, titles, strict=True):
            logits = ops.convert_to_numpy(relative_logits_2d(query, *tables))
            logits = logits[0, 0, pixel[0] * width + pixel[1]].reshape(height, width)
            axis.imshow(logits, cmap="RdBu", vmin=-9, vmax=9)
            axis.plot(pixel[1], pixel[0], "kx", markersize=9)
            axis.set_title(title, fontsize=10)
    return figure


def answers_for_digits(labels):
    """The images of some digits, and what the live page's network answers to them."""
    digits = json.loads((LIVE / "digits.json").read_text())
    places = [digits["labels"].index(label) for label in labels]
    images = np.array(digits["pixels"], "float32")[places].reshape(-1, 28, 28, 1) / 255
    session = onnxruntime.InferenceSession(LIVE / "digits.onnx")
    return images, session.run(None, {session.get_inputs()[0].name: images})


def draw_gates():
    images, (_, _, channels, pixels) = answers_for_digits([0, 2, 4, 7, 8])
    figure, axes = grid(3, len(images), 9, 5)
    for column, image in enumerate(images):
        axes[0, column].imshow(image, cmap="gray")
        shown = axes[1, column].imshow(
            pixels[column].reshape(14, 14), cmap="viridis", vmin=0, vmax=1
        )
        gate = channels[column].ravel()
        axes[2, column].bar(range(len(gate)), gate)
        axes[2, column].set_ylim(0, 1)
    figure.colorbar(shown, ax=axes[1], shrink=0.9, pad=0.01)
    for axis, label in zip(axes[:, 0], ("digit", "spatial gate", "channel gate"), strict=True):
        axis.set_ylabel(label)
    return figure


def draw_windows():
    """Where pixels on a stroke look, head by head."""
    images, (_, scores, _, _) = answers_for_digits([2, 7])
    pixels = [np.argwhere(image[6:22, 6:22, 0] > 0.9)[8] + 6 for image in images]
    heads = scores.shape[-2]
    figure, axes = grid(len(images), 1 + heads, 9, 3.8)
    for line, image, maps, (row, column) in zip(axes, images, scores, pixels, strict=True):
        line[0].imshow(image, cmap="gray")
        line[0].plot(column, row, "rx")
        window = [column - 3.5, column + 3.5, column + 3.5, column - 3.5, column - 3.5]
        line[0].plot(window, [row - 3.5, row - 3.5, row + 3.5, row + 3.5, row - 3.5], "r")
        for head, axis in enumerate(line[1:]):
            axis.imshow(maps[row, column, head].reshape(7, 7), cmap="viridis", vmin=0)
            axis.set_title(f"head {head + 1}", fontsize=10)
    return figure


FIGURES = {
    "influence": draw_influence,
    "sinusoids": draw_sinusoids,
    "relative-logits": draw_relative_logits,
    "gates": draw_gates,
    "windows": draw_windows,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, default=Path("runs/figures"), help="folder")
    parser.add_argument("--only", action="append", choices=FIGURES, help="may be repeated")
    settings = parser.parse_args()
    settings.write.mkdir(parents=True, exist_ok=True)
    for name in settings.only or FIGURES:
        draw_in_schemes(FIGURES[name], settings.write, f"{name}.svg")
        print(f"{settings.write / name}-light.svg and -dark.svg")


if __name__ == "__main__":
    main()
