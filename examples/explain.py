"""Grad-CAM on real photographs, of a network with CBAM and of one without, side by side.

Two small residual networks learn to tell from a piece which of nine photographs it is cut out of.
The photographs come with scikit-image and scikit-learn. Drawn are, as in the figure of the CBAM
paper, the photograph and where each network sees what it says; then pairs of photographs beside
each other, where each class should show in its own half, and by how much it does. Run it with

    python examples/explain.py --output runs/explain
"""

import argparse
import importlib.util
import os
import pathlib

if "KERAS_BACKEND" not in os.environ:
    backends = ("jax", "torch", "tensorflow")
    os.environ["KERAS_BACKEND"] = next(b for b in backends if importlib.util.find_spec(b))

import keras
import numpy as np
from schemes import draw_in_schemes
from skimage import data
from sklearn.datasets import load_sample_images

from keras_visattn import models, visualize

SIDE = 96
PIECES = 64  # of each photograph, an epoch
ATTENTIONS = {"without": None, "with CBAM": "cbam"}


def photographs():
    """Gives the photographs by name, square, in [0, 1]."""
    china, flower = load_sample_images().images
    found = {
        "astronaut": data.astronaut(),
        "cat": data.chelsea(),
        "coffee": data.coffee(),
        "rocket": data.rocket(),
        "cameraman": data.camera()[..., None].repeat(3, axis=-1),
        "galaxies": data.hubble_deep_field(),
        "retina": data.retina(),
        "temple": china,
        "flower": flower,
    }
    return {name: _resized(_square(image), 2 * SIDE) for name, image in found.items()}


def _square(image):
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side].astype("float32") / 255


def _resized(image, side):
    image = keras.ops.image.resize(image, (side, side), antialias=True)
    return np.clip(keras.ops.convert_to_numpy(image), 0, 1)


def pieces(images, count, seed):
    """Cuts pieces of half a photograph's side or more, mirrors half of them, changes the light."""
    draw = np.random.default_rng(seed)
    cut = np.empty((count * len(images), SIDE, SIDE, 3), "float32")
    labels = np.repeat(np.arange(len(images)), count)
    grid = (np.arange(SIDE) + 0.5) / SIDE
    for index, label in enumerate(labels):
        image = images[label]
        side = draw.integers(SIDE, len(image) + 1)
        top, left = draw.integers(len(image) - side + 1, size=2)
        rows, columns = ((start + side * grid).astype(int) for start in (top, left))
        piece = image[rows][:, columns[:: draw.choice([-1, 1])]]
        cut[index] = np.clip(piece * draw.uniform(0.6, 1.4), 0, 1)
    return cut, labels


class FreshPieces(keras.utils.PyDataset):
    """New pieces in every epoch."""

    def __init__(self, images, pieces_each, batch):
        super().__init__()
        self.images, self.pieces_each, self.batch = images, pieces_each, batch
        self.epoch = 0
        self.on_epoch_end()

    def on_epoch_end(self):
        cut, labels = pieces(self.images, self.pieces_each, seed=self.epoch)
        order = np.random.default_rng(self.epoch).permutation(len(labels))
        self.cut, self.labels = cut[order], labels[order]
        self.epoch += 1

    def __len__(self):
        return len(self.labels) // self.batch

    def __getitem__(self, index):
        here = slice(index * self.batch, (index + 1) * self.batch)
        return self.cut[here], self.labels[here]


def train(attention, images, epochs, pieces_each):
    keras.utils.set_random_seed(0)
    arguments = {} if attention is None else {"reduction_ratio": 4}
    model = models.ResNet(18, attention, filters=16, classes=len(images), **arguments)
    fresh = FreshPieces(images, pieces_each, batch=32)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * len(fresh))
    model.compile(
        keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(fresh, epochs=epochs, verbose=2)
    return model


def side_by_side(images):
    """Gives all pairs of photographs beside each other, and the labels of left and right."""
    count = len(images)
    labels = [(a, b) for a in range(count) for b in range(count) if a != b]
    pairs = np.stack([np.concatenate([images[a], images[b]], axis=1) for a, b in labels])
    return pairs, np.array(labels)


def share_in_half(model, pairs, labels):
    """The mean share of the map of a class that lies in its own half."""
    shares = []
    for half in (0, 1):
        maps = visualize.grad_cam(model, pairs, class_index=labels[:, half], verbose=0)
        middle = maps.shape[2] // 2
        own = maps[:, :, :middle] if half == 0 else maps[:, :, middle:]
        totals = maps.sum(axis=(1, 2))
        shares.append((own.sum(axis=(1, 2)) / np.where(totals > 0, totals, 1))[totals > 0])
    return float(np.mean(np.concatenate(shares)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/explain"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--pieces", type=int, default=PIECES, help="of a photograph, an epoch")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    named = photographs()
    names, images = list(named), np.stack([_resized(x, SIDE) for x in named.values()])
    held_out, labels = pieces(list(named.values()), 32, seed=10_000)
    pairs, pair_labels = side_by_side(images)

    maps, halves, rows = {}, {}, []
    for title, attention in ATTENTIONS.items():
        print(f"\n{title}")
        model = train(attention, list(named.values()), arguments.epochs, arguments.pieces)
        accuracy = np.mean(model.predict(held_out, verbose=0).argmax(-1) == labels)
        maps[title] = visualize.grad_cam(model, images)
        share = share_in_half(model, pairs, pair_labels)
        first = pairs[:: len(names)]
        for half, side in enumerate(("left", "right")):
            asked = pair_labels[:: len(names), half]
            halves[f"{title}: the {side} one"] = visualize.grad_cam(model, first, None, asked)
        rows.append((title, model.count_params(), accuracy, share))
        if attention is not None:
            gates = visualize.attention_maps(model, images)
            block = next(name for name in gates if name.startswith("stage1"))
            maps[f"spatial gate, {block.rpartition('_')[0]}"] = gates[block]["spatial"]

    titles = [" | ".join(names[x] for x in pair) for pair in pair_labels[:: len(names)]]
    for name, shown in {
        "grad_cam.webp": (images, maps, None, names),
        "side_by_side.webp": (first, halves, None, titles),
    }.items():
        draw_in_schemes(lambda shown=shown: visualize.show(*shown), arguments.output, name)
    form = "{:12}{:>12}{:>18}{:>26}"
    print("\n" + form.format("network", "parameters", "pieces, held out", "map in its own half"))
    for title, parameters, accuracy, share in rows:
        print(form.format(title, f"{parameters:,}", f"{accuracy:.1%}", f"{share:.1%}"))
    print(f"\nThe figures, for light and dark pages, are in {arguments.output}.")


if __name__ == "__main__":
    main()
