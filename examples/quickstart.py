"""Trains four small classifiers of handwritten digits: a plain one, and three with attention.

Prints a table of them, saves each, and draws what each attention looks at. Run it with

    python examples/quickstart.py --output runs/quickstart
"""

import argparse
import importlib.util
import os
import pathlib
import time

if "KERAS_BACKEND" not in os.environ:
    backends = ("jax", "torch", "tensorflow")
    os.environ["KERAS_BACKEND"] = next(b for b in backends if importlib.util.find_spec(b))

import digits
import keras
import matplotlib
import numpy as np

from keras_visattn import complexity, visualize
from keras_visattn.layers import CBAM, AugmentedConv2D, LocalSelfAttention2D

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FILTERS = 32
BATCH = 64
QUERY = (4, 4)
WINDOW = 3
SHOWN = 4


def convolution(x):
    return keras.layers.Conv2D(FILTERS, 3, padding="same", use_bias=False)(x)


def convolution_and_cbam(x):
    return CBAM(reduction_ratio=4, kernel_size=3, name="attention")(convolution(x))


def augmented_convolution(x):
    layer = AugmentedConv2D(
        FILTERS, 3, total_key_dim=16, total_value_dim=8, num_heads=4, name="attention"
    )
    return layer(x)


def local_attention(x):
    return LocalSelfAttention2D(FILTERS, WINDOW, num_heads=4, name="attention")(x)


VARIANTS = {
    "plain": convolution,
    "CBAM": convolution_and_cbam,
    "AugmentedConv2D": augmented_convolution,
    "LocalSelfAttention2D": local_attention,
}


def build(middle, name):
    """Builds the classifier, with `middle` as the second of its three stages."""
    inputs = keras.Input((8, 8, 1))
    x = inputs
    for stage in (convolution, middle, convolution):
        x = keras.layers.BatchNormalization(momentum=0.9)(stage(x))
        x = keras.layers.ReLU()(x)
    x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Dropout(0.3)(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.Dense(10)(x), name=name)


class StepTimes(keras.callbacks.Callback):
    """Keeps the seconds of every training step."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)


def shifted(images, seed):
    """Moves each image by up to one pixel in each direction."""
    offsets = np.random.default_rng(seed).integers(0, 3, (len(images), 2))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.stack(
        [
            image[row : row + 8, column : column + 8]
            for image, (row, column) in zip(padded, offsets, strict=True)
        ]
    )


def train(model, images, labels, epochs):
    """Trains on the images and on shifted copies of them, and gives the seconds of a step."""
    images = np.concatenate([images, shifted(images, seed=0)])
    labels = np.concatenate([labels, labels])
    steps = epochs * -(-len(images) // BATCH)
    model.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    times = StepTimes()
    model.fit(images, labels, batch_size=BATCH, epochs=epochs, verbose=1, callbacks=[times])
    return float(np.median(times.seconds[steps // epochs :]))


def saved_and_reloaded(model, images, path):
    """Saves a model, reloads it, and makes sure that it predicts the same."""
    model.save(path)
    expected = model.predict(images, verbose=0)
    reloaded = keras.saving.load_model(path)
    if not np.allclose(reloaded.predict(images, verbose=0), expected, rtol=1e-5, atol=1e-5):
        raise SystemExit(f"{path} must predict like the model that was saved.")
    return reloaded


def attention_of(model, images):
    """Gives a map for each image: CBAM's spatial gate, or where the pixel `QUERY` looks.

    What the heads look at is averaged.
    """
    found = visualize.attention_maps(model, images, QUERY)["attention"]
    return found["spatial"] if "spatial" in found else found["keys"].mean(axis=1)


def draw(models, images, labels, path):
    """Draws a row for each image: the image, and its attention in each variant."""
    attentive = {name: model for name, model in models.items() if name != "plain"}
    maps = {name: attention_of(model, images) for name, model in attentive.items()}
    found = {name: model.predict(images, verbose=0).argmax(-1) for name, model in models.items()}
    size = (len(maps) + 1, len(images))
    figure, axes = plt.subplots(size[1], size[0], figsize=(2.6 * size[0], 2.3 * size[1] + 0.6))
    for index, row in enumerate(axes):
        row[0].imshow(images[index, ..., 0], cmap="gray_r")
        row[0].set_title(f"true {labels[index]}, plain: {found['plain'][index]}", fontsize=9)
        for axis, (name, values) in zip(row[1:], maps.items(), strict=True):
            shown = axis.imshow(values[index], cmap="viridis")
            figure.colorbar(shown, ax=axis, shrink=0.8)
            axis.set_title(f"{name}: {found[name][index]}", fontsize=9)
            if name != "CBAM":
                axis.plot(QUERY[1], QUERY[0], "rx")
        for axis in row:
            axis.set_axis_off()
    figure.suptitle("CBAM: the spatial gate. Others: where the pixel with the cross looks.")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/quickstart"))
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    (images, labels), (test_images, test_labels), line = digits.load(arguments.output / "data")
    print(f"Backend: {keras.backend.backend()}. Data: {line}.")
    print(f"{len(images)} images to train on, {len(test_images)} held out.")

    models, rows = {}, []
    for name, middle in VARIANTS.items():
        print(f"\n{name}")
        keras.utils.set_random_seed(0)
        model = build(middle, name)
        seconds = train(model, images, labels, arguments.epochs)
        _, accuracy = model.evaluate(test_images, test_labels, verbose=0)
        path = arguments.output / f"{name}.keras"
        models[name] = saved_and_reloaded(model, test_images, path)
        counts = complexity.profile(model)
        rows.append((name, accuracy, counts.parameters, counts.macs, seconds))

    draw(models, test_images[:SHOWN], test_labels[:SHOWN], arguments.output / "figure.png")

    form = "{:22}{:>10}{:>12}{:>15}{:>16}"
    print(
        "\n" + form.format("variant", "held-out", "parameters", "multiply-adds", "seconds a step")
    )
    for name, accuracy, parameters, macs, seconds in rows:
        cells = (f"{accuracy:.2%}", f"{parameters:,}", f"{macs:,}", f"{seconds:.4f}")
        print(form.format(name, *cells))
    print(f"\nModels and figure.png are in {arguments.output}.")

    low = [name for name, accuracy, *_ in rows if accuracy <= 0.97]
    if low:
        raise SystemExit(f"Every variant must be above 97 % held-out. Received: {', '.join(low)}")


if __name__ == "__main__":
    main()
